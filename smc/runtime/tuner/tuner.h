/* Between the tuner and the table that smc generates for it: which kernels it measures, on what. */
#ifndef SMC_TUNER_H
#define SMC_TUNER_H

#include <stdint.h>

/* A matmul kernel (smc/codegen/cpu/kernels/linear.py says what it computes). */
typedef int32_t tuner_linear(const void *x, const void *x_scales, const void *x_sums, const void *codes,
                             const void *scales, const void *zeros, const void *bias, void *out, int32_t tokens,
                             int32_t columns, int32_t x_stride, int32_t out_stride, int32_t flags,
                             int32_t prefetch_distance, int32_t begin, int32_t end);

struct tuner_candidate {
  const char *name; /* "4x32" */
  tuner_linear *linear;
};

/* A packed matrix and a number of tokens. */
struct tuner_workload {
  int32_t rows, columns, tokens;
  int32_t padded_rows, x_stride; /* floats of an output row, of an input row */
  uint64_t scales_offset, zeros_offset,
      bytes; /* of the packed matrix, which begins with its codes; each a multiple of 64 */
};

/* One kernel of one feature level. */
struct tuner_kernel {
  const char *name;     /* "linear_int4_g32" */
  const char *level;    /* "avx2" */
  const char *features; /* comma-separated LLVM feature names, all of which the CPU must have */
  int32_t input_sum;    /* int8 inputs: how many fours of codes a sum has (each four adds up to 1). 0: float inputs */
  const struct tuner_candidate *candidates; /* the default first */
  int32_t candidate_count;
  const struct tuner_workload *workloads;
  int32_t workload_count;
};

extern const struct tuner_kernel tuner_kernels[];
extern const int32_t tuner_kernel_count;
extern const uint64_t tuner_weight_bytes; /* of a whole model: so much lies between two uses of a matrix */

#endif
