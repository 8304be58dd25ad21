/* Reads packed weights in several orders for benchmarks.streams, which loads it as a library. */
#define _GNU_SOURCE
#include <stdint.h>
#include <time.h>

#define LINE 64
#define CODE_BYTES (8 * LINE) /* of a tile; its scales, of 32 rows in f16, are one line */
#define PREFETCHED_TILES 24   /* 12 KiB of codes */

typedef uint16_t words __attribute__((vector_size(LINE)));

/* Where tiles lie, and which of them a thread reads: `run` tiles from `begin` on, as many a `step` further, … */
struct walk {
  const uint8_t *codes, *scales;
  int64_t code_stride, scale_stride;
  int64_t begin, end, run, step;
};

static inline __attribute__((always_inline)) int64_t go(const struct walk *w, int prefetch) {
  struct timespec begin, end;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  words low = {0}, high = {0};
  for (int64_t first = w->begin; first < w->end; first += w->step) {
    const int64_t last = first + w->run < w->end ? first + w->run : w->end;
    for (int64_t t = first; t < last; t++) {
      const uint8_t *codes = w->codes + t * w->code_stride, *scales = w->scales + t * w->scale_stride;
      if (prefetch) { /* into the second cache */
        __builtin_prefetch(scales + PREFETCHED_TILES * w->scale_stride, 0, 2);
        for (int i = 0; i < CODE_BYTES; i += LINE)
          __builtin_prefetch(codes + PREFETCHED_TILES * w->code_stride + i, 0, 2);
      }
      low += *(const words *)scales;
      for (int i = 0; i < CODE_BYTES; i += LINE) { /* both halves of every byte, masked, multiplied, added up */
        const words line = *(const words *)(codes + i);
        low += (line & 0x0f0f) * (uint16_t)t;
        high += (line >> 4 & 0x0f0f) * (uint16_t)t;
      }
    }
  }
  low += high;
  __asm__ __volatile__("" ::"m"(low)); /* somebody wants it */
  clock_gettime(CLOCK_MONOTONIC, &end);
  return (end.tv_sec - begin.tv_sec) * INT64_C(1000000000) + end.tv_nsec - begin.tv_nsec;
}

/* Nanoseconds of a walk. */
int64_t read_tiles(const struct walk *w) { return go(w, 0); }

/* The same where every line is prefetched PREFETCHED_TILES sooner. */
int64_t read_tiles_prefetched(const struct walk *w) { return go(w, 1); }
