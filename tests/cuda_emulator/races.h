/* Finds accesses to the same byte that nothing orders: two of different threads, at least one of them a write, and
 * between them neither a barrier of the block, nor one of the warp, nor one of the grid. What is found does not depend
 * on the order in which the stand-in happens to run the threads. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define RACES_MOST_BLOCKS 16

/* Allocates memory whose accesses are checked, with its shadow. */
uint8_t *races_region(size_t bytes);
/* A launch begins: all that was before is ordered before it. */
void races_launch(int blocks);
/* All threads of the block, or of a warp of it, have met. */
void races_met_block(int block);
void races_met_warp(int block, int warp);
/* Thread `thread` of the block counts it in at a barrier of the grid: what the block did before its last barrier, and
 * the thread itself, is known to whoever looks at the counter from now on, and behind its next barrier to its block. */
void races_arrive(int block);
void races_look(int block, int thread);
/* An access by a thread; the sentence about a race, or NULL. */
const char *races_access(const uint8_t *place, size_t bytes, int writes, int block, int thread);
