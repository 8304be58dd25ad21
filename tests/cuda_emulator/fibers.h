/* Runs launches: one fiber per CUDA thread, all blocks of a launch alive, on one thread of the system. */
#pragma once
#include "emulator.h"

#define THREADS 256 /* of a block */
#define MOST_SHARED (227 << 10)

/* What $SMC_EMULATOR says of the "GPU": "blocks=3,order=reverse,capability=90,…".
 * memory: MiB of the device; eaten: the part that another process takes, which queries show only after an allocation
 * has failed. cooperative: 0: the GPU has no cooperative launches, 2: it says that it has, and refuses them.
 * fail_launch: the number of the launch that fails. late: the last block only runs when the others are done, and time
 * passes for those who wait. left_out: the line of the program whose wait is left out. */
struct settings {
  long blocks, capability, version, devices, memory, eaten, cooperative, fail_launch, late, cancel, left_out, seed;
  int order; /* 0 forward, 1 reverse, 2 random */
};
extern struct settings settings;
void read_settings(void);

extern struct emulator emulator;

typedef void entry(const void *a, void *b, uint32_t c, uint32_t d);

struct call {
  entry *function;
  void *a, *b;
  uint32_t c, d;
};

/* Ends the process with a sentence. */
void fail(const char *sentence, int line);
/* Memory that races.h checks, filled with NaN, aligned by 256 bytes and nearly ending at a forbidden page; NULL:
 * there is none. */
uint8_t *region_take(size_t bytes);
void region_give(uint8_t *memory, size_t bytes);
/* The functions that programs call. */
void fibers_begin(void);
void run_blocks(const struct call *call, int count, size_t shared);
