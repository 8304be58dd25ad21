/* Parts of kernels: integer types, threads, and the few instructions that C++ lacks.
 *
 * The same text is compiled for GPUs (by NVRTC, or by nvcc) and, by SMC_EMULATED, for the CPU stand-in of the tests, whose
 * emulated.h has these functions in plain C++. Every rounding is spelled out: no product is fused with a sum but by smc_fma. */
#ifdef SMC_EMULATED
#include "emulated.h"
#else

#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

#define SMC_DEVICE static __device__ __forceinline__
#define SMC_KERNEL static __device__ __noinline__
#define SMC_DEVICE_MEMBER __device__ __forceinline__
#define SMC_DEVICE_STATIC static __device__ __forceinline__
#define SMC_ENTRY extern "C" __global__ void __launch_bounds__(256, 2)
#define SMC_TABLE static __device__ const
#define SMC_MARK extern "C" __device__ const

/* A vector of 16 bytes, as weights are loaded. */
typedef uint4 smc_words;

/* ---- threads */

SMC_DEVICE int32_t smc_lane_of_block() { return (int32_t)threadIdx.x; }
SMC_DEVICE int32_t smc_block_index() { return (int32_t)blockIdx.x; }
SMC_DEVICE int32_t smc_block_count() { return (int32_t)gridDim.x; }
SMC_DEVICE void smc_sync() { __syncthreads(); }
SMC_DEVICE void smc_sync_warp() { __syncwarp(); }
SMC_DEVICE int smc_sync_any(int value) { return __syncthreads_or(value); }
SMC_DEVICE float smc_from_lane(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
SMC_DEVICE int32_t smc_from_lane(int32_t value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
SMC_DEVICE uint8_t *smc_shared_memory() {
  extern __shared__ __align__(128) uint8_t shared[];
  return shared;
}

/* What is made of these pointers is made anew from here on, and does not take up registers before. */
#define SMC_ANEW(a, b) asm volatile("" : "+l"(a), "+l"(b))

/* The thread's number; nor is anything made of it kept from before. */
SMC_DEVICE int32_t smc_lane_anew() {
  int32_t lane;
  asm volatile("mov.u32 %0, %tid.x;" : "=r"(lane));
  return lane;
}

/* ---- arithmetic */

SMC_DEVICE float smc_fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
SMC_DEVICE float smc_mul(float a, float b) { return __fmul_rn(a, b); }
SMC_DEVICE float smc_add(float a, float b) { return __fadd_rn(a, b); }
SMC_DEVICE float smc_sub(float a, float b) { return __fsub_rn(a, b); }
SMC_DEVICE float smc_div(float a, float b) { return __fdiv_rn(a, b); }
SMC_DEVICE float smc_sqrt(float a) { return __fsqrt_rn(a); }
SMC_DEVICE float smc_max(float a, float b) { return fmaxf(a, b); }
SMC_DEVICE float smc_min(float a, float b) { return fminf(a, b); }
SMC_DEVICE float smc_abs(float a) { return fabsf(a); }
SMC_DEVICE int32_t smc_nearest(float a) { return __float2int_rn(a); } /* halves to even */
SMC_DEVICE float smc_float(int32_t a) { return __int2float_rn(a); }
SMC_DEVICE float smc_float_of_bits(uint32_t bits) { return __uint_as_float(bits); }
SMC_DEVICE uint32_t smc_bits_of_float(float value) { return __float_as_uint(value); }

SMC_DEVICE float smc_float_of_f16(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

SMC_DEVICE uint16_t smc_f16_of_float(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

/* c + the products of four signed bytes; of four unsigned bytes of a by signed ones of b. */
SMC_DEVICE int32_t smc_dot(uint32_t a, uint32_t b, int32_t c) { return __dp4a((int)a, (int)b, c); }
SMC_DEVICE int32_t smc_dot_unsigned(uint32_t a, uint32_t b, int32_t c) {
  int32_t sum;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}

/* By a warp: sums of 16 rows by 8 columns += rows of a, of which lane l has 4 columns of rows l / 4 and l / 4 + 8 (a[0], a[1]) and
 * 4 others (a[2], a[3]), by b, with the same columns of token l / 4. A lane's sums are of its rows and tokens 2 (l % 4) and the next. */
template <bool SIGNED> SMC_DEVICE void smc_tensor_product(int32_t *sums, const uint32_t *a, const uint32_t *b) {
  if (SIGNED)
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* ---- memory */

/* Weights are read once: they do not stay in the first cache. Nothing else is read through this path, because it may be
 * stale. */
SMC_DEVICE smc_words smc_load_weights(const void *place) {
  smc_words w;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w) : "l"(place));
  return w;
}

/* Copies of 16 or 4 bytes to shared memory that a thread does not wait for. They form groups; a wait is for all of the thread's own
 * but the latest groups. */
SMC_DEVICE uint32_t smc_shared_place(const void *shared) { return (uint32_t)__cvta_generic_to_shared(shared); }
SMC_DEVICE void smc_copy_async(void *shared, const void *source) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(smc_shared_place(shared)), "l"(source) : "memory");
}
SMC_DEVICE void smc_copy_async_4(void *shared, const void *source) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(smc_shared_place(shared)), "l"(source) : "memory");
}
SMC_DEVICE void smc_end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
#define smc_wait_copies(groups) asm volatile("cp.async.wait_group " #groups ";" ::: "memory")

/* ---- the whole grid */

/* Which of a phase's blocks a block of the grid does first; any order will do, if no two have the same. */
SMC_DEVICE int32_t smc_first_block(int32_t index, int32_t count, uint32_t phase) {
  (void)count, (void)phase;
  return index;
}

SMC_DEVICE void smc_arrive(uint32_t *counter) {
  __threadfence();
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

SMC_DEVICE uint32_t smc_look(const uint32_t *counter) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

/* A word that others may look at, or write the same value to, meanwhile. */
SMC_DEVICE void smc_tell(uint32_t *word, uint32_t value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}
SMC_DEVICE void smc_tell(int32_t *word, int32_t value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

/* A word that the host may write meanwhile. */
SMC_DEVICE uint32_t smc_look_at_host(const uint32_t *word) {
  uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}

SMC_DEVICE void smc_wait() { __nanosleep(32); }

SMC_DEVICE uint64_t smc_nanoseconds() {
  uint64_t time;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
  return time;
}
#endif

#define SMC_THREADS 256 /* of a block */
#define SMC_WARPS 8
