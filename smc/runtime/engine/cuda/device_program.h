/* What a level's `kernels` point to in a program for GPUs: machine code, and how it is launched. */
#ifndef SMC_DEVICE_PROGRAM_H
#define SMC_DEVICE_PROGRAM_H

#include <stdint.h>

struct smc_image {
  const uint8_t *data; /* a cubin, or PTX that ends with a 0 */
  const uint64_t *bytes;
  int32_t architecture; /* 80: compute capability 8.0 */
  int32_t ptx;          /* the driver compiles it for any GPU from the architecture on */
  int32_t shared_bytes; /* shared memory of a block of threads */
};

#define SMC_BLOCK_THREADS 256

#endif
