/* What the stand-in gives to the programs that it runs; set for the fiber that runs. */
#pragma once
#include <stddef.h>
#include <stdint.h>

struct emulator {
  int32_t thread, block, blocks;
  uint8_t *shared;
  uint64_t now;        /* rises by one per turn of waiting: time stands still while any thread works */
  const uint8_t *seen; /* the memory whose accesses are checked: of the device, and shared … */
  size_t seen_bytes;   /* … 0: none is */
  int32_t left_out;    /* the line of a wait that is left out, for tests of the tests; 0: none */
  void (*sync)(int line);
  int (*sync_any)(int value, int line);
  void (*sync_warp)(int line);
  uint32_t (*from_lane)(uint32_t value, int lane);
  const uint32_t (*(*share)(const uint32_t values[6]))[6]; /* of all lanes of the warp */
  void (*arrive)(uint32_t *counter);
  uint32_t (*look)(const uint32_t *counter);
  uint32_t (*look_at_host)(const uint32_t *word);
  void (*copy)(void *shared, const void *source, size_t bytes); /* begins a copy that a wait for copies ends */
  void (*wait_copies)(int32_t groups, int line);
  void (*end_group)(void);
  void (*access)(const void *place, size_t bytes, int writes);
  void (*wait)(void);
  void (*fail)(const char *sentence, int line);
};
