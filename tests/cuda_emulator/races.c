/* races.h by epochs: every barrier that a block or a warp has passed is a number, and every byte remembers who wrote it
 * last, who read it since, and in which epoch ("FastTrack: Efficient and Precise Dynamic Race Detection", 2009). */
#define _GNU_SOURCE
#include "races.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define WARPS 8

/* An access. Of reads that nothing orders among each other, those of more than one lane, warp or block, one entry says
 * so; several blocks: epoch is then the number of the grid's barrier that each of them reaches next, the latest. */
struct entry {
  uint64_t launch : 14, thread : 8, block : 5, epoch : 22, warp_epoch : 12, several : 2, there : 1;
};
enum { ONE, LANES, WARPS_OF_BLOCK, BLOCKS };

struct cell {
  struct entry written, read;
};

static struct {
  uint8_t *begin;
  struct cell *cells; /* of every byte */
} region;

static uint32_t launch;
static int block_count;
static struct {
  uint32_t epoch, warp_epochs[WARPS];
  uint32_t released, arrivals; /* at its last barrier of the grid: epochs below are over; how many there were */
  uint32_t seen[RACES_MOST_BLOCKS], round; /* what of the others is over, for all threads of the block, … */
  uint32_t looked[RACES_MOST_BLOCKS], looked_round;
  int looker; /* … and for the one that has looked; -1: none has */
} blocks[RACES_MOST_BLOCKS];

uint8_t *races_region(size_t bytes) {
  const int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  if (region.begin) return region.begin;
  uint8_t *begin = mmap(NULL, bytes, PROT_NONE, kind, -1, 0);
  void *cells = mmap(NULL, bytes * sizeof(struct cell), PROT_READ | PROT_WRITE, kind, -1, 0);
  if (begin == MAP_FAILED || cells == MAP_FAILED) return NULL;
  region.begin = begin, region.cells = cells;
  return begin;
}

void races_launch(int count) {
  launch = (launch + 1) & 0x3fff;
  block_count = count;
  memset(blocks, 0, sizeof blocks);
  for (int b = 0; b < count; b++) blocks[b].epoch = 1, blocks[b].looker = -1;
}

void races_met_block(int block) {
  blocks[block].epoch++;
  memset(blocks[block].warp_epochs, 0, sizeof blocks[block].warp_epochs);
  if (blocks[block].looker < 0) return;
  memcpy(blocks[block].seen, blocks[block].looked, sizeof blocks[block].seen);
  blocks[block].round = blocks[block].looked_round;
  blocks[block].looker = -1;
}

void races_met_warp(int block, int warp) { blocks[block].warp_epochs[warp]++; }

void races_arrive(int block) {
  blocks[block].released = blocks[block].epoch;
  blocks[block].arrivals++;
}

void races_look(int block, int thread) {
  uint32_t round = UINT32_MAX;
  for (int b = 0; b < block_count; b++) {
    blocks[block].looked[b] = blocks[b].released;
    if (blocks[b].arrivals < round) round = blocks[b].arrivals;
  }
  blocks[block].looked_round = round;
  blocks[block].looker = thread;
}

/* Whether the access was over before what the thread does now. */
static int ordered(struct entry old, int block, int thread) {
  if (!old.there || old.launch != launch) return 1;
  const int looker = blocks[block].looker == thread;
  if (old.several == BLOCKS) return (looker ? blocks[block].looked_round : blocks[block].round) >= old.epoch;
  if (old.block != (unsigned)block) return (looker ? blocks[block].looked : blocks[block].seen)[old.block] > old.epoch;
  if (old.epoch < blocks[block].epoch) return 1;
  if (old.several == WARPS_OF_BLOCK || old.thread / 32 != (unsigned)thread / 32) return 0;
  if (old.warp_epoch < blocks[block].warp_epochs[thread / 32]) return 1;
  return old.several == ONE && old.thread == (unsigned)thread;
}

static struct entry merged(struct entry old, struct entry now) {
  if (old.several == BLOCKS || old.block != now.block) {
    const uint32_t next = blocks[now.block].arrivals + 1;
    /* The other block may have arrived at the barrier behind its access already. */
    const uint32_t arrived = blocks[old.block].arrivals, since = old.epoch >= blocks[old.block].released;
    const uint32_t before = old.several == BLOCKS ? old.epoch : arrived + since;
    now.several = BLOCKS;
    now.epoch = next > before ? next : before;
  } else {
    now.several = old.several == WARPS_OF_BLOCK || old.thread / 32 != now.thread / 32 ? WARPS_OF_BLOCK : LANES;
  }
  return now;
}

static const char *sentence(const char *now, const char *before, struct entry old, int block, int thread) {
  static char text[256];
  snprintf(text, sizeof text, "a race: thread %d of block %d %s what thread %u of block %u %s, and no wait is between",
           thread, block, now, old.thread, old.block, before);
  return text;
}

const char *races_access(const uint8_t *place, size_t bytes, int writes, int block, int thread) {
  struct cell *cell = region.cells + (place - region.begin);
  const struct entry now = {.launch = launch,
                            .thread = (unsigned)thread,
                            .block = (unsigned)block,
                            .epoch = blocks[block].epoch,
                            .warp_epoch = blocks[block].warp_epochs[thread / 32],
                            .several = ONE,
                            .there = 1};
  for (size_t i = 0; i < bytes; i++, cell++) {
    if (memcmp(&cell->written, &now, sizeof now) && !ordered(cell->written, block, thread))
      return sentence(writes ? "overwrites" : "reads", "has written", cell->written, block, thread);
    if (!memcmp(&cell->read, &now, sizeof now)) {
      if (writes) cell->written = now;
      continue;
    }
    const int over = ordered(cell->read, block, thread);
    if (!writes) {
      cell->read = over ? now : merged(cell->read, now);
      continue;
    }
    if (!over) return sentence("overwrites", "has read", cell->read, block, thread);
    cell->written = now;
  }
  return NULL;
}
