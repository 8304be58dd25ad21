/* The largest logit of a token, from the results of the head's threads and lanes. */
#include "internal.h"

#include <math.h>

void smc_argmax_clear(const struct smc_step *step, int32_t threads) {
  for (struct smc_argmax *argmax = step->argmaxes; argmax < step->argmaxes + (int64_t)threads * step->argmax_count;
       argmax++)
    for (int lane = 0; lane < SMC_ARGMAX_LANES; lane++) {
      argmax->logits[lane] = -INFINITY;
      argmax->ids[lane] = INT32_MAX;
    }
}

int32_t smc_argmax_of(const struct smc_step *step, int32_t threads, int32_t i) {
  float largest = -INFINITY;
  int32_t id = 0;
  for (int32_t thread = 0; thread < threads; thread++) {
    const struct smc_argmax *argmax = &step->argmaxes[(int64_t)thread * step->argmax_count + i];
    for (int lane = 0; lane < SMC_ARGMAX_LANES; lane++) {
      const int lower = argmax->logits[lane] == largest && argmax->ids[lane] < id;
      if (!(argmax->logits[lane] > largest || lower)) continue;
      largest = argmax->logits[lane];
      id = argmax->ids[lane];
    }
  }
  /* NaN is never the largest: if all logits are NaN, there is none. */
  return isfinite(largest) ? id : -1;
}
