/* The largest logit of a token, out of what the head's threads and lanes have found. */
#include "internal.h"

#include <math.h>

void smc_top_clear(const struct smc_step *step, int32_t threads) {
  for (struct smc_top *top = step->tops; top < step->tops + (int64_t)threads * step->top_count; top++)
    for (int lane = 0; lane < SMC_TOP_LANES; lane++) {
      top->logits[lane] = -INFINITY;
      top->ids[lane] = INT32_MAX;
    }
}

int32_t smc_top_of(const struct smc_step *step, int32_t threads, int32_t i) {
  float largest = -INFINITY;
  int32_t id = 0;
  for (int32_t thread = 0; thread < threads; thread++) {
    const struct smc_top *top = &step->tops[(int64_t)thread * step->top_count + i];
    for (int lane = 0; lane < SMC_TOP_LANES; lane++) {
      const int lower = top->logits[lane] == largest && top->ids[lane] < id;
      if (!(top->logits[lane] > largest || lower)) continue;
      largest = top->logits[lane];
      id = top->ids[lane];
    }
  }
  /* NaN is never the largest: where all logits are, nothing was found. */
  return isfinite(largest) ? id : -1;
}
