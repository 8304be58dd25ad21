/* A stand-in for libcuda.so.1: it runs programs for GPUs on the CPU, for tests. One thread of the system, a fiber per
 * CUDA thread; all blocks of a launch are alive. Memory of the device is filled with NaN and ends at a page that nobody
 * may touch; so is shared memory filled before every launch. A barrier that not all threads come to ends the process
 * with a sentence.
 *
 * cuModuleLoadData takes real machine code, of which it only reads the program's name: $SMC_EMULATOR_PROGRAMS/NAME.so
 * is the same text compiled for the CPU. $SMC_EMULATOR says what the "GPU" is like:
 * "blocks=3,order=reverse,capability=90,…" (settings below). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "emulator.h"

#define THREADS 256
#define WARPS (THREADS / 32)
#define STACK (64 << 10)
#define MOST_SHARED (227 << 10)
#define MOST_IDLE_TURNS 100000
#define API __attribute__((visibility("default")))

enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, NO_IMAGE = 209, NOT_FOUND = 500, LAUNCH_FAILED = 719 };

/* ---- settings */

static struct {
  long blocks, capability, version, devices, memory, cooperative, fail_launch, seed;
  int order; /* 0 forward, 1 reverse, 2 random */
} settings = {3, 80, 12040, 1, 4096, 1, 0, 1, 0};

static void read_settings(void) {
  const char *text = getenv("SMC_EMULATOR");
  static const char *const names[] = {"blocks", "capability",  "version",     "devices",
                                      "memory", "cooperative", "fail_launch", "seed"};
  long *const values[] = {&settings.blocks, &settings.capability,  &settings.version,     &settings.devices,
                          &settings.memory, &settings.cooperative, &settings.fail_launch, &settings.seed};
  for (; text && *text; text += strcspn(text, ","), text += *text == ',') {
    for (int i = 0; i < 8; i++)
      if (!strncmp(text, names[i], strlen(names[i])) && text[strlen(names[i])] == '=')
        *values[i] = atol(text + strlen(names[i]) + 1);
    if (!strncmp(text, "order=reverse", 13)) settings.order = 1;
    if (!strncmp(text, "order=random", 12)) settings.order = 2;
  }
}

/* ---- fibers */

enum state { READY, AT_BARRIER, IN_WARP, DONE };

struct fiber {
  void *stack_pointer;
  uint8_t *stack;
  enum state state;
  int line, value;
  uint32_t sent, turn; /* of the warp's exchanges */
};

struct block {
  struct fiber fibers[THREADS];
  uint8_t *shared;
  int arrived, any, done;
  int warp_arrived[WARPS];
  uint32_t sent[2][THREADS], shares[2][THREADS][6];
};

typedef void entry(const void *step, void *control, uint32_t first, uint32_t last);

static struct emulator emulator;
static struct block *blocks;
static int block_room;
static void *scheduler;
static struct fiber *running;
static int progress;
static struct {
  entry *function;
  void *step, *control;
  uint32_t first, last;
} call;

void emulator_switch(void **save, void *load);
#if defined(__x86_64__)
__asm__(".text\n.globl emulator_switch\n.hidden emulator_switch\n.type emulator_switch,@function\nemulator_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\nmovq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
#else
#error "the stand-in knows x86-64"
#endif

static void fail(const char *sentence, int line) {
  fprintf(stderr, "stand-in: %s (line %d of the program, block %d, thread %d)\n", sentence, line, emulator.block,
          emulator.thread);
  abort();
}

static void pause_fiber(enum state state, int line) {
  running->state = state;
  running->line = line;
  emulator_switch(&running->stack_pointer, scheduler);
}

static struct block *here(void) { return &blocks[emulator.block]; }

static int sync_any(int value, int line) {
  struct block *block = here();
  block->any |= value;
  if (++block->arrived + block->done < THREADS) {
    pause_fiber(AT_BARRIER, line);
  } else { /* the last one lets all go */
    for (int i = 0; i < THREADS; i++) {
      struct fiber *fiber = &block->fibers[i];
      if (fiber->state == AT_BARRIER && fiber->line != line) fail("threads of a block are at different barriers", line);
      fiber->value = block->any;
      if (fiber->state == AT_BARRIER) fiber->state = READY;
      if (fiber->state == IN_WARP) fail("threads of a block are at a barrier and in an exchange of their warp", line);
    }
    block->arrived = block->any = 0;
    progress = 1;
    running->value = running->value;
    pause_fiber(READY, line);
  }
  return running->value;
}

static void sync_block(int line) { sync_any(0, line); }

/* All 32 lanes come; what they bring is there for all. */
static void meet(uint32_t value, int line) {
  struct block *block = here();
  const int warp = emulator.thread / 32;
  block->sent[running->turn++ & 1][emulator.thread] = value;
  if (++block->warp_arrived[warp] < 32) {
    pause_fiber(IN_WARP, line);
  } else {
    for (int i = 32 * warp; i < 32 * warp + 32; i++)
      if (block->fibers[i].state == IN_WARP) block->fibers[i].state = READY;
    block->warp_arrived[warp] = 0;
    progress = 1;
    pause_fiber(READY, line);
  }
}

static void sync_warp(int line) { meet(0, line); }

static uint32_t from_lane(uint32_t value, int lane) {
  meet(value, 0);
  return here()->sent[(running->turn - 1) & 1][emulator.thread / 32 * 32 + (lane & 31)];
}

static const uint32_t (*share(const uint32_t values[6]))[6] {
  struct block *block = here();
  const uint32_t turn = running->turn & 1;
  memcpy(block->shares[turn][emulator.thread], values, sizeof block->shares[0][0]);
  meet(0, 0);
  return (const uint32_t (*)[6]) & block->shares[turn][emulator.thread / 32 * 32];
}

static void wait_turn(void) {
  emulator.now++;
  pause_fiber(READY, 0);
}

static void begin_fiber(void) {
  call.function(call.step, call.control, call.first, call.last);
  here()->done++;
  progress = 1;
  pause_fiber(DONE, 0);
}

static void make_fiber(struct fiber *fiber) {
  if (!fiber->stack)
    fiber->stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  void **top = (void **)(fiber->stack + STACK);
  *--top = NULL; /* nobody returns there; and the stack is aligned as at a call */
  *--top = (void *)begin_fiber;
  for (int i = 0; i < 6; i++) *--top = NULL;
  fiber->stack_pointer = top;
  fiber->state = READY;
  fiber->turn = 0;
}

static uint32_t random_number(void) {
  static uint64_t state;
  state = (state ? state : (uint64_t)settings.seed) * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(state >> 33);
}

/* The i-th of n in this turn. */
static int place(int i, int n, uint32_t shift) {
  return settings.order == 0 ? i : settings.order == 1 ? n - 1 - i : (int)(((uint32_t)i * 7 + shift) % (uint32_t)n);
}

static void run_blocks(int count, size_t shared) {
  if (count > block_room) {
    blocks = realloc(blocks, (size_t)count * sizeof *blocks);
    memset(blocks + block_room, 0, (size_t)(count - block_room) * sizeof *blocks);
    block_room = count;
  }
  for (int b = 0; b < count; b++) {
    struct block *block = &blocks[b];
    if (!block->shared)
      block->shared = mmap(NULL, MOST_SHARED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(block->shared, 0xff, shared);
    block->arrived = block->any = block->done = 0;
    memset(block->warp_arrived, 0, sizeof block->warp_arrived);
    for (int t = 0; t < THREADS; t++) make_fiber(&block->fibers[t]);
  }
  emulator.blocks = count;
  for (int left = count, idle = 0; left;) {
    progress = 0;
    const uint32_t shift = random_number();
    left = 0;
    for (int i = 0; i < count; i++) {
      emulator.block = place(i, count, shift);
      struct block *block = &blocks[emulator.block];
      emulator.shared = block->shared;
      for (int j = 0; j < THREADS; j++) {
        emulator.thread = settings.order == 2 ? (int)(((uint32_t)j * 37 + shift) % THREADS) : place(j, THREADS, 0);
        struct fiber *fiber = &block->fibers[emulator.thread];
        if (fiber->state != READY) continue;
        running = fiber;
        emulator_switch(&scheduler, fiber->stack_pointer);
      }
      left += block->done < THREADS;
    }
    idle = progress ? 0 : idle + 1;
    if (idle > MOST_IDLE_TURNS) fail("threads wait for each other in vain", blocks[emulator.block].fibers[0].line);
  }
}

/* ---- the driver's functions */

struct allocation {
  uint8_t *begin;
  size_t bytes, mapped;
};
static struct allocation allocations[4096];
static size_t used_bytes;

API int cuInit(unsigned flags) {
  (void)flags;
  read_settings();
  emulator = (struct emulator){.sync = sync_block,
                               .sync_any = sync_any,
                               .sync_warp = sync_warp,
                               .from_lane = from_lane,
                               .share = share,
                               .wait = wait_turn,
                               .fail = fail};
  return settings.devices < 0 ? NO_DEVICE : OK;
}
API int cuDriverGetVersion(int *version) { return *version = (int)settings.version, OK; }
API int cuDeviceGetCount(int *count) { return *count = (int)settings.devices, OK; }
API int cuDeviceGet(int *device, int number) { return number < settings.devices ? (*device = number, OK) : INVALID; }
API int cuDeviceGetName(char *name, int size, int device) {
  return snprintf(name, (size_t)size, "stand-in %d", device), OK;
}
API int cuDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  switch (attribute) {
    case 16: *value = (int)settings.blocks; return OK;
    case 75: *value = (int)settings.capability / 10; return OK;
    case 76: *value = (int)settings.capability % 10; return OK;
    case 95: *value = (int)settings.cooperative; return OK;
  }
  return INVALID;
}
API int cuDevicePrimaryCtxRetain(void **context, int device) { return (void)device, *context = &emulator, OK; }
API int cuDevicePrimaryCtxRelease_v2(int device) { return (void)device, OK; }
static int depth;
API int cuCtxPushCurrent_v2(void *context) { return context == &emulator ? depth++, OK : INVALID; }
API int cuCtxPopCurrent_v2(void **context) { return depth > 0 ? depth--, *context = &emulator, OK : INVALID; }

static const char *find_name(const char *image, size_t bytes) {
  static char name[64];
  const char *const mark = "smc_program_";
  const char *found = memmem(image, bytes, mark, strlen(mark));
  if (!found) return NULL;
  snprintf(name, sizeof name, "%.44s", found);
  return name;
}

API int cuModuleLoadData(void **module, const void *image) {
  const uint8_t *bytes = image;
  size_t size;
  if (!memcmp(bytes, "\177ELF", 4)) { /* it ends with the table of its sections */
    uint64_t sections;
    uint16_t each, count;
    memcpy(&sections, bytes + 40, 8);
    memcpy(&each, bytes + 58, 2);
    memcpy(&count, bytes + 60, 2);
    size = sections + (size_t)each * count;
  } else {
    size = strlen(image);
  }
  const char *folder = getenv("SMC_EMULATOR_PROGRAMS"), *name = find_name(image, size);
  char path[4096];
  if (!folder || !name) return NO_IMAGE;
  snprintf(path, sizeof path, "%s/%s.so", folder, name);
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return fprintf(stderr, "stand-in: %s\n", dlerror()), NO_IMAGE;
  struct emulator **slot = dlsym(library, "smc_emulator");
  *slot = &emulator;
  *module = library;
  return OK;
}
API int cuModuleUnload(void *module) { return dlclose(module) ? INVALID : OK; }
API int cuModuleGetFunction(void **function, void *module, const char *name) {
  return (*function = dlsym(module, name)) ? OK : NOT_FOUND;
}

static int shared_limit = 48 << 10;
API int cuFuncSetAttribute(void *function, int attribute, int value) {
  if (!function || attribute != 8 || value > MOST_SHARED) return INVALID;
  shared_limit = value > shared_limit ? value : shared_limit;
  return OK;
}
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *count, void *function, int threads, size_t shared) {
  return function && threads == THREADS ? (*count = shared <= MOST_SHARED, OK) : INVALID;
}
API int cuMemGetInfo_v2(size_t *left, size_t *total) {
  *total = (size_t)settings.memory << 20;
  *left = *total > used_bytes ? *total - used_bytes : 0;
  return OK;
}

static int take(void **pointer, size_t bytes, int of_device) {
  const size_t page = (size_t)getpagesize(), mapped = (bytes + page - 1) / page * page + page;
  struct allocation *free_one = allocations;
  if (!bytes || (of_device && used_bytes + bytes > (size_t)settings.memory << 20)) return NO_MEMORY;
  while (free_one->begin) free_one++;
  uint8_t *memory = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return NO_MEMORY;
  memset(memory, 0xff, mapped - page);
  mprotect(memory + mapped - page, page, PROT_NONE);
  /* The end is as near to the forbidden page as the alignment of all allocations allows. */
  *free_one = (struct allocation){memory + (mapped - page - bytes) / 256 * 256, of_device ? bytes : 0, mapped};
  *pointer = free_one->begin;
  used_bytes += free_one->bytes;
  return OK;
}
static int give(void *pointer) {
  for (struct allocation *one = allocations; one < allocations + 4096; one++) {
    if (one->begin != pointer || !pointer) continue;
    const size_t page = (size_t)getpagesize();
    munmap((void *)((uintptr_t)one->begin / page * page), one->mapped);
    used_bytes -= one->bytes;
    *one = (struct allocation){0};
    return OK;
  }
  return INVALID;
}
API int cuMemAlloc_v2(uint64_t *pointer, size_t bytes) { return depth ? take((void **)pointer, bytes, 1) : INVALID; }
API int cuMemFree_v2(uint64_t pointer) { return give((void *)pointer); }
API int cuMemHostAlloc(void **pointer, size_t bytes, unsigned flags) { return (void)flags, take(pointer, bytes, 0); }
API int cuMemFreeHost(void *pointer) { return give(pointer); }
API int cuMemHostGetDevicePointer_v2(uint64_t *pointer, void *host, unsigned flags) {
  return (void)flags, *pointer = (uint64_t)host, OK;
}

static int broken; /* failures of a kernel are for good */
API int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
  return (void)stream, broken ? broken : (memcpy((void *)to, from, bytes), OK);
}
API int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
  return (void)stream, broken ? broken : (memcpy(to, (void *)from, bytes), OK);
}
API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
  return (void)stream, broken ? broken : (memcpy((void *)to, (void *)from, bytes), OK);
}
API int cuStreamCreate(void **stream, unsigned flags) { return (void)flags, *stream = &settings, OK; }
API int cuStreamDestroy_v2(void *stream) { return stream == &settings ? OK : INVALID; }
API int cuStreamSynchronize(void *stream) { return stream == &settings ? broken : INVALID; }

API int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                       unsigned shared, void *stream, void **arguments, void **extra) {
  static long launches;
  if (broken) return broken;
  if (!depth || extra || y * z * ty * tz != 1 || tx != THREADS || x < 1 || (int)shared > shared_limit ||
      stream != &settings)
    return INVALID;
  if (++launches == settings.fail_launch) return broken = LAUNCH_FAILED;
  call.function = (entry *)function;
  call.step = *(void **)arguments[0];
  call.control = *(void **)arguments[1];
  call.first = *(uint32_t *)arguments[2];
  call.last = *(uint32_t *)arguments[3];
  run_blocks((int)x, shared);
  return OK;
}
API int cuLaunchCooperativeKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty,
                                  unsigned tz, unsigned shared, void *stream, void **arguments) {
  if (!settings.cooperative || x > (unsigned)settings.blocks) return INVALID;
  return cuLaunchKernel(function, x, y, z, tx, ty, tz, shared, stream, arguments, NULL);
}
API int cuGetErrorString(int error, const char **text) {
  *text = error == NO_MEMORY       ? "out of memory"
          : error == NO_DEVICE     ? "no CUDA-capable device is detected"
          : error == NO_IMAGE      ? "no kernel image is available"
          : error == LAUNCH_FAILED ? "unspecified launch failure"
                                   : "invalid argument";
  return OK;
}
