/* Plain reads of memory, prefetched as the engine does, and messages between CPUs, for benchmarks.reads, which loads it
 * as a library. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

typedef uint64_t vector __attribute__((vector_size(64)));

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int32_t smc_prefetch_distance(void); /* the engine's cpu.c */

/* The sum of `bytes` bytes, a multiple of 256, prefetched `ahead` bytes before, unless that is 0. */
static vector sum_of(const void *memory, uint64_t bytes, int32_t ahead) {
  const vector *data = memory;
  vector sums[4] = {{0}};
  for (uint64_t v = 0; v < bytes / sizeof(vector); v += 4) {
    if (ahead)
      for (int j = 0; j < 4; j++) __builtin_prefetch((const char *)&data[v + (uint64_t)j] + ahead, 0, 2);
    for (int j = 0; j < 4; j++) sums[j] += data[v + (uint64_t)j];
  }
  return sums[0] + sums[1] + sums[2] + sums[3];
}

/* Keeps the compiler from leaving out what makes the sum. */
static void use(vector sum) {
  __asm__ __volatile__("" ::"r"(sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7]));
}

/* Nanoseconds of reading `bytes`, a multiple of 256, so many times. */
int64_t time_reads(const void *memory, uint64_t bytes, int64_t times) {
  const int32_t ahead = smc_prefetch_distance();
  const int64_t begin = now();
  for (int64_t i = 0; i < times; i++) {
    use(sum_of(memory, bytes, ahead));
    __asm__ __volatile__("" ::: "memory"); /* read it again */
  }
  return now() - begin;
}

#define PATIENCE 10000 /* spins; then the other thread may need this CPU */

static void await(const _Atomic int64_t *line, int64_t value) {
  for (int64_t spins = 0; atomic_load_explicit(line, memory_order_acquire) < value; spins++)
    if (spins > PATIENCE) sched_yield();
}

/* Nanoseconds of so many messages from the first of two threads to the second, each answered. `lines`: 512 bytes of
 * zeros. */
int64_t time_messages(_Atomic int64_t *lines, int64_t count, int64_t second) {
  _Atomic int64_t *own = lines + (second ? 32 : 0), *other = lines + (second ? 0 : 32);
  const int64_t begin = now();
  for (int64_t i = 1; i <= count; i++) {
    if (second) await(other, i);
    atomic_store_explicit(own, i, memory_order_release);
    if (!second) await(other, i);
  }
  return now() - begin;
}

/* What no step of decoding does without. `phases` has the bytes that each phase reads, multiples of 256 times
 * `threads`, one behind the other in the memory. In each a thread reads a vector that the threads wrote in the phase
 * before, and its part of the bytes; it writes its part of the next vector, and waits for the others. `exchange`: two
 * vectors of `width` bytes, a multiple of 256 times `threads`; `lines`: 256 bytes of zeros for each thread. Nanoseconds
 * of so many steps. */
int64_t time_steps(const uint8_t *memory, const uint64_t *phases, int64_t count, uint8_t *exchange, uint64_t width,
                   _Atomic int64_t *lines, int64_t threads, int64_t thread, int64_t times) {
  const uint64_t part = width / (uint64_t)threads;
  const int32_t ahead = smc_prefetch_distance();
  int64_t done = 0;
  const int64_t begin = now();
  for (int64_t i = 0; i < times; i++) {
    const uint8_t *data = memory;
    for (int64_t p = 0; p < count; data += phases[p++]) {
      const uint64_t bytes = phases[p] / (uint64_t)threads;
      const vector sum =
          sum_of(exchange + (done % 2 ? width : 0), width, 0) + sum_of(data + (uint64_t)thread * bytes, bytes, ahead);
      vector *results = (vector *)(void *)(exchange + (done % 2 ? 0 : width) + (uint64_t)thread * part);
      for (uint64_t v = 0; v < part / sizeof(vector); v++) results[v] = sum;
      atomic_store_explicit(lines + thread * 32, ++done, memory_order_release);
      for (int64_t t = 0; t < threads; t++) await(lines + t * 32, done);
    }
  }
  return now() - begin;
}
