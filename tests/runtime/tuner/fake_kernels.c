/* A table of three kernels for the tuner, one on a level that no CPU has: candidates that take once, three and eight
 * times as long, and one that is wrong in one number. */
#include "tuner.h"

#define PARAMETERS                                                                                                     \
  const void *x, const void *x_scales, const void *x_sums, const void *codes, const void *scales, const void *zeros,   \
      const void *bias, void *out, int32_t tokens, int32_t columns, int32_t x_stride, int32_t out_stride,              \
      int32_t flags, int32_t prefetch_distance, int32_t begin, int32_t end

/* Reads and writes all that a kernel may. */
static int32_t sum(PARAMETERS, int32_t times) {
  (void)x_scales, (void)x_sums, (void)bias, (void)flags, (void)prefetch_distance, (void)begin;
  const uint8_t *stored = codes;
  const uint64_t bytes = (uint64_t)((const uint8_t *)zeros - stored) + 64;
  for (int32_t time = 0; time < times; time++)
    for (int32_t t = 0; t < tokens; t++)
      for (int32_t r = 0; r < 32 * end; r++) {
        volatile uint32_t total = 0;
        for (int32_t c = 0; c < columns; c++)
          total += stored[(uint64_t)(r * columns + c) % bytes] ^ ((const uint8_t *)x)[t * x_stride + c];
        ((uint32_t *)out)[t * out_stride + r] = total + ((const uint8_t *)scales)[0];
      }
  return 0;
}

#define ARGUMENTS                                                                                                      \
  x, x_scales, x_sums, codes, scales, zeros, bias, out, tokens, columns, x_stride, out_stride, flags,                  \
      prefetch_distance, begin, end
static int32_t slow(PARAMETERS) { return sum(ARGUMENTS, 3); }
static int32_t fast(PARAMETERS) { return sum(ARGUMENTS, 1); }
static int32_t slowest(PARAMETERS) { return sum(ARGUMENTS, 8); }

static int32_t wrong(PARAMETERS) {
  sum(ARGUMENTS, 1);
  ((uint32_t *)out)[(tokens - 1) * out_stride + 32 * end - 1] ^= 1;
  return 0;
}

static const struct tuner_candidate right[] = {{"1x32", slow}, {"2x32", fast}, {"4x32", slowest}};
static const struct tuner_candidate partly_wrong[] = {{"1x32", slow}, {"2x32", wrong}, {"4x32", fast}};
static const struct tuner_workload workloads[] = {{40, 96, 3, 64, 96, 4096, 5120, 6208},
                                                  {33, 33, 1, 64, 64, 4096, 4096, 4160}};

const struct tuner_kernel tuner_kernels[] = {
    {"linear_future", "holodeck", "quantum", 0, right, 3, workloads, 2},
    {"linear_right", "plain", PLAIN, 8, right, 3, workloads, 2},
#ifdef WRONG
    {"linear_wrong", "plain", PLAIN, 0, partly_wrong, 3, workloads, 1},
#endif
};
const int32_t tuner_kernel_count = sizeof tuner_kernels / sizeof *tuner_kernels;
const uint64_t tuner_weight_bytes = 3 << 20;

#ifndef WRONG
const void *unused = partly_wrong;
#endif
