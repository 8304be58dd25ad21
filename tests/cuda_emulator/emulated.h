/* base.cuh in plain C++: what a program for GPUs is compiled with for the stand-in (driver.c), which runs one fiber per
 * thread. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "emulator.h"

#define __device__
#define SMC_DEVICE static inline __attribute__((unused))
#define SMC_DEVICE_MEMBER inline
#define SMC_DEVICE_STATIC static inline
#define SMC_KERNEL static __attribute__((noinline, unused))
#define SMC_ENTRY extern "C" __attribute__((visibility("default"))) void
#define SMC_TABLE static const
#define SMC_MARK extern "C" const

struct alignas(16) smc_words {
  uint32_t x, y, z, w;
};

extern "C" __attribute__((visibility("default"))) struct emulator *smc_emulator;
struct emulator *smc_emulator;

/* ---- threads */

SMC_DEVICE int32_t smc_lane_of_block() { return smc_emulator->thread; }
SMC_DEVICE int32_t smc_block_index() { return smc_emulator->block; }
SMC_DEVICE int32_t smc_block_count() { return smc_emulator->blocks; }
SMC_DEVICE uint8_t *smc_shared_memory() { return smc_emulator->shared; }
#define smc_sync() smc_emulator->sync(__LINE__)
#define smc_sync_warp() smc_emulator->sync_warp(__LINE__)
#define smc_sync_any(value) smc_emulator->sync_any(value, __LINE__)
SMC_DEVICE float smc_float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
SMC_DEVICE uint32_t smc_bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
SMC_DEVICE float smc_from_lane(float value, int lane) {
  return smc_float_of_bits(smc_emulator->from_lane(smc_bits_of_float(value), lane));
}
SMC_DEVICE int32_t smc_from_lane(int32_t value, int lane) {
  return (int32_t)smc_emulator->from_lane((uint32_t)value, lane);
}

#define SMC_ANEW(a, b) ((void)0)
SMC_DEVICE int32_t smc_lane_anew() { return smc_lane_of_block(); }

/* ---- arithmetic; compiled without fusing products and sums */

SMC_DEVICE float smc_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
SMC_DEVICE float smc_mul(float a, float b) { return a * b; }
SMC_DEVICE float smc_add(float a, float b) { return a + b; }
SMC_DEVICE float smc_sub(float a, float b) { return a - b; }
SMC_DEVICE float smc_div(float a, float b) { return a / b; }
SMC_DEVICE float smc_sqrt(float a) { return __builtin_sqrtf(a); }
SMC_DEVICE float smc_max(float a, float b) { return __builtin_fmaxf(a, b); }
SMC_DEVICE float smc_min(float a, float b) { return __builtin_fminf(a, b); }
SMC_DEVICE float smc_abs(float a) { return __builtin_fabsf(a); }
SMC_DEVICE int32_t smc_nearest(float a) { return (int32_t)__builtin_rintf(a); }
SMC_DEVICE float smc_float(int32_t a) { return (float)a; }
SMC_DEVICE float smc_float_of_f16(uint16_t bits) {
  _Float16 value;
  memcpy(&value, &bits, 2);
  return (float)value;
}
SMC_DEVICE uint16_t smc_f16_of_float(float value) {
  const _Float16 half = (_Float16)value;
  uint16_t bits;
  memcpy(&bits, &half, 2);
  return bits;
}
SMC_DEVICE int32_t smc_dot(uint32_t a, uint32_t b, int32_t c) {
  for (int i = 0; i < 32; i += 8) c += (int8_t)(a >> i) * (int8_t)(b >> i);
  return c;
}
SMC_DEVICE int32_t smc_dot_unsigned(uint32_t a, uint32_t b, int32_t c) {
  for (int i = 0; i < 32; i += 8) c += (uint8_t)(a >> i) * (int8_t)(b >> i);
  return c;
}

template <bool SIGNED> SMC_DEVICE void smc_tensor_product(int32_t *sums, const uint32_t *a, const uint32_t *b) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const uint32_t (*lanes)[6] = smc_emulator->share(mine);
  const int lane = smc_emulator->thread & 31;
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4, token = 2 * (lane % 4) + i % 2, lower = i / 2;
    for (int j = 0; j < 4; j++)
      for (int part = 0; part < 2; part++) {
        const uint32_t codes = lanes[4 * row + j][2 * part + lower], inputs = lanes[4 * token + j][4 + part];
        sums[i] = SIGNED ? smc_dot(codes, inputs, sums[i]) : smc_dot_unsigned(codes, inputs, sums[i]);
      }
  }
}

/* ---- memory, and the whole grid */

SMC_DEVICE struct smc_words smc_load_weights(const void *place) {
  if ((uintptr_t)place % 16) smc_emulator->fail("a load of 16 bytes is not aligned", __LINE__);
  struct smc_words words;
  memcpy(&words, place, 16);
  return words;
}
/* Without waiting for others, 16 bytes to shared memory; copies form groups, and a wait is for all groups but the
 * latest. */
SMC_DEVICE void smc_copy_async(void *shared, const void *source) { smc_emulator->copy(shared, source, 16); }
SMC_DEVICE void smc_copy_async_4(void *shared, const void *source) { smc_emulator->copy(shared, source, 4); }
SMC_DEVICE void smc_end_copies() { smc_emulator->end_group(); }
template <int GROUPS> SMC_DEVICE void smc_wait_copies_at(int line) { smc_emulator->wait_copies(GROUPS, line); }
#define smc_wait_copies(groups) smc_wait_copies_at<groups>(__LINE__)

/* Another order in every phase, so that no test passes only because a block happens to have the same work again. */
SMC_DEVICE int32_t smc_first_block(int32_t index, int32_t count, uint32_t phase) {
  return (int32_t)(((uint32_t)index + phase) % (uint32_t)count);
}
SMC_DEVICE void smc_arrive(uint32_t *counter) { smc_emulator->arrive(counter); }
SMC_DEVICE uint32_t smc_look(const uint32_t *counter) { return smc_emulator->look(counter); }
template <class T> SMC_DEVICE void smc_tell(T *word, T value) { __atomic_store_n(word, value, __ATOMIC_RELAXED); }
SMC_DEVICE uint32_t smc_look_at_host(const uint32_t *word) { return smc_emulator->look_at_host(word); }
SMC_DEVICE void smc_wait() { smc_emulator->wait(); }
SMC_DEVICE uint64_t smc_nanoseconds() { return smc_emulator->now; }

/* The end of a phase, in a program in which tests may leave it out: a block comes, and goes on at once. */
#define SMC_PHASE_END(thread, phase)                                                                                   \
  (smc_emulator->left_out == __LINE__                                                                                  \
       ? (smc_emulator->sync(0), smc_lane_of_block() ? (void)0 : smc_arrive(&(thread)->control->arrived),              \
          smc_emulator->sync(0), 0)                                                                                    \
       : smc_phase_end(thread, phase))
