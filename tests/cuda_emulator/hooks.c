/* Where clang's -fsanitize=thread has a program call: its accesses of memory, for the stand-in. */
#include "emulator.h"

extern struct emulator *smc_emulator;

static inline void seen(const void *place, size_t bytes, int writes) {
  if ((size_t)((const uint8_t *)place - smc_emulator->seen) < smc_emulator->seen_bytes)
    smc_emulator->access(place, bytes, writes);
}

#define ACCESSES(bytes)                                                                                                \
  void __tsan_read##bytes(void *place) { seen(place, bytes, 0); }                                                      \
  void __tsan_write##bytes(void *place) { seen(place, bytes, 1); }                                                     \
  void __tsan_unaligned_read##bytes(void *place) { seen(place, bytes, 0); }                                            \
  void __tsan_unaligned_write##bytes(void *place) { seen(place, bytes, 1); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void *__tsan_memcpy(void *to, const void *from, size_t bytes) {
  seen(from, bytes, 0);
  seen(to, bytes, 1);
  return __builtin_memcpy(to, from, bytes);
}
void *__tsan_memset(void *to, int value, size_t bytes) {
  seen(to, bytes, 1);
  return __builtin_memset(to, value, bytes);
}
void __tsan_init(void) {}
void __tsan_func_entry(void *caller) { (void)caller; }
void __tsan_func_exit(void) {}

/* Words that threads may read and write at once. */
uint32_t __tsan_atomic32_load(const volatile uint32_t *place, int order) {
  (void)order;
  return *place;
}
void __tsan_atomic32_store(volatile uint32_t *place, uint32_t value, int order) {
  (void)order;
  *place = value;
}
