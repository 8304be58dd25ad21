/* Plain reads of memory for benchmarks.reads, which loads it as a library. */
#define _GNU_SOURCE
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
