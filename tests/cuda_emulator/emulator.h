/* What the stand-in gives to the programs that it runs; set for the fiber that runs. */
#pragma once
#include <stdint.h>

struct emulator {
  int32_t thread, block, blocks;
  uint8_t *shared;
  uint64_t now; /* one more for every turn of waiting: time stands still while something happens */
  void (*sync)(int line);
  int (*sync_any)(int value, int line);
  void (*sync_warp)(int line);
  uint32_t (*from_lane)(uint32_t value, int lane);
  const uint32_t (*(*share)(const uint32_t values[6]))[6]; /* of all lanes of the warp */
  void (*wait)(void);
  void (*fail)(const char *sentence, int line);
};
