/* The clock of waiting threads and profiles. */
#include "internal.h"

#include <time.h>

int64_t smc_nanoseconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}
