/* Plain reads of memory, and messages between CPUs, for benchmarks.reads, which loads it as a library. */
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

/* Nanoseconds of reading `bytes`, a multiple of 256, so many times. */
int64_t time_reads(const void *memory, uint64_t bytes, int64_t times) {
  const vector *data = memory;
  vector sums[4] = {{0}};
  const int64_t begin = now();
  for (int64_t i = 0; i < times; i++) {
    for (uint64_t v = 0; v < bytes / sizeof(vector); v += 4)
      for (int j = 0; j < 4; j++) sums[j] += data[v + (uint64_t)j];
    __asm__ __volatile__("" ::: "memory"); /* read it again */
  }
  const vector sum = sums[0] + sums[1] + sums[2] + sums[3];
  __asm__ __volatile__("" ::"r"(sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7]));
  return now() - begin;
}

#define PATIENCE 10000 /* spins; then the other thread may need this CPU */

static void await(const _Atomic int64_t *line, int64_t value) {
  for (int64_t spins = 0; atomic_load_explicit(line, memory_order_acquire) < value; spins++)
    if (spins > PATIENCE) sched_yield();
}

/* Nanoseconds of so many messages from the first of two threads to the second, each answered. `lines`: 512 bytes of zeros. */
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
