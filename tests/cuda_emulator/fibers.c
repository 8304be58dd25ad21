/* fibers.h. Shared memory is filled with NaN before every launch. A barrier that not all threads come to ends the
 * process, and so do two accesses that no barrier orders (races.h). An asynchronous copy leaves NaN until the wait that
 * covers it. */
#define _GNU_SOURCE
#include "fibers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "races.h"

#define WARPS (THREADS / 32)
#define STACK (64 << 10)
#define MOST_IDLE_TURNS 100000
#define MOST_COPIES 64
#define REGION (UINT64_C(16) << 30) /* of memory that a process gets at most */

struct settings settings;
struct emulator emulator;

void read_settings(void) {
  settings = (struct settings){
      .blocks = 3, .capability = 80, .version = 12040, .devices = 1, .memory = 4096, .cooperative = 1, .seed = 1};
  const char *text = getenv("SMC_EMULATOR");
  static const struct {
    const char *name;
    long *value;
  } numbers[] = {
      {"blocks", &settings.blocks},           {"capability", &settings.capability},   {"version", &settings.version},
      {"devices", &settings.devices},         {"memory", &settings.memory},           {"eaten", &settings.eaten},
      {"cooperative", &settings.cooperative}, {"fail_launch", &settings.fail_launch}, {"late", &settings.late},
      {"cancel", &settings.cancel},           {"left_out", &settings.left_out},       {"seed", &settings.seed}};
  for (; text && *text; text += strcspn(text, ","), text += *text == ',') {
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
      const size_t length = strlen(numbers[i].name);
      if (!strncmp(text, numbers[i].name, length) && text[length] == '=') *numbers[i].value = atol(text + length + 1);
    }
    if (!strncmp(text, "order=reverse", 13)) settings.order = 1;
    if (!strncmp(text, "order=random", 12)) settings.order = 2;
  }
}

/* ---- fibers */

enum state { READY, AT_BARRIER, IN_WARP, DONE };

struct copy {
  uint8_t *to;
  const uint8_t *from;
  size_t bytes;
  int32_t group;
};

struct fiber {
  void *stack_pointer;
  uint8_t *stack;
  enum state state;
  int line, value;
  uint32_t turn;                   /* of the warp's exchanges */
  struct copy copies[MOST_COPIES]; /* begun and not yet awaited */
  int32_t copy_count, group;
};

struct block {
  struct fiber fibers[THREADS];
  uint8_t *shared; /* ends at a forbidden page */
  int arrived, any, done;
  int warp_arrived[WARPS];
  uint32_t sent[2][THREADS], shares[2][THREADS][6];
};

static struct block *blocks[RACES_MOST_BLOCKS];
static void *scheduler;
static struct fiber *running;
static int progress;
static struct call call;

void emulator_switch(void **save, void *load);
#if defined(__x86_64__)
__asm__(".text\n.globl emulator_switch\n.hidden emulator_switch\n.type emulator_switch,@function\nemulator_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\nmovq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
#else
#error "the stand-in knows x86-64"
#endif

void fail(const char *sentence, int line) {
  fprintf(stderr, "stand-in: %s (line %d of the program, block %d, thread %d)\n", sentence, line, emulator.block,
          emulator.thread);
  abort();
}

static void pause_fiber(enum state state, int line) {
  running->state = state;
  running->line = line;
  emulator_switch(&running->stack_pointer, scheduler);
}

static struct block *here(void) { return blocks[emulator.block]; }

static int sync_any(int value, int line) {
  struct block *block = here();
  if (line == emulator.left_out) return value;
  block->any |= value;
  if (++block->arrived + block->done < THREADS) {
    pause_fiber(AT_BARRIER, line);
  } else { /* the last one releases all */
    for (int i = 0; i < THREADS; i++) {
      struct fiber *fiber = &block->fibers[i];
      if (fiber->state == AT_BARRIER && fiber->line != line) fail("threads of a block are at different barriers", line);
      fiber->value = block->any;
      if (fiber->state == AT_BARRIER) fiber->state = READY;
      if (fiber->state == IN_WARP) fail("threads of a block are at a barrier and in an exchange of their warp", line);
    }
    block->arrived = block->any = 0;
    progress = 1;
    races_met_block(emulator.block);
    pause_fiber(READY, line);
  }
  return running->value;
}

static void sync_block(int line) { sync_any(0, line); }

/* All 32 lanes come; what they bring is there for all. Only sync: what they wrote to memory is, too. */
static void meet(uint32_t value, int sync, int line) {
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
    if (sync) races_met_warp(emulator.block, warp);
    pause_fiber(READY, line);
  }
}

static void sync_warp(int line) {
  if (line != emulator.left_out) meet(0, 1, line);
}

static uint32_t from_lane(uint32_t value, int lane) {
  meet(value, 0, 0);
  return here()->sent[(running->turn - 1) & 1][emulator.thread / 32 * 32 + (lane & 31)];
}

static const uint32_t (*share(const uint32_t values[6]))[6] {
  struct block *block = here();
  const uint32_t turn = running->turn & 1;
  memcpy(block->shares[turn][emulator.thread], values, sizeof block->shares[0][0]);
  meet(0, 0, 0);
  return (const uint32_t (*)[6]) & block->shares[turn][emulator.thread / 32 * 32];
}

static void wait_turn(void) {
  emulator.now += settings.late ? 1000000000 : 1;
  pause_fiber(READY, running->line);
}

/* ---- memory */

static void note_access(const void *place, size_t bytes, int writes) {
  const char *race = races_access(place, bytes, writes, emulator.block, emulator.thread);
  if (race) fail(race, running->line);
}

static void arrive(uint32_t *counter) {
  ++*counter;
  races_arrive(emulator.block);
  progress = 1;
}

static uint32_t look(const uint32_t *counter) {
  races_look(emulator.block, emulator.thread);
  return *counter;
}

static uint32_t look_at_host(const uint32_t *word) {
  static long looks;
  return *word + (++looks == settings.cancel);
}

static void begin_copy(void *shared, const void *source, size_t bytes) {
  if (running->copy_count == MOST_COPIES) fail("too many copies wait", running->line);
  if (((uintptr_t)shared | (uintptr_t)source) % bytes) fail("an asynchronous copy is not aligned", running->line);
  note_access(source, bytes, 0);
  note_access(shared, bytes, 1);
  memset(shared, 0xff, bytes);
  running->copies[running->copy_count++] = (struct copy){shared, source, bytes, running->group};
}

static void end_group(void) { running->group++; }

/* All but the latest `groups` of groups have come. */
static void wait_copies(int32_t groups, int line) {
  int32_t left = 0;
  if (line == emulator.left_out) return;
  for (int32_t i = 0; i < running->copy_count; i++) {
    const struct copy copy = running->copies[i];
    if (copy.group + groups >= running->group) {
      running->copies[left++] = copy;
      continue;
    }
    note_access(copy.to, copy.bytes, 1);
    memcpy(copy.to, copy.from, copy.bytes);
  }
  running->copy_count = left;
}

static void begin_fiber(void) {
  call.function(call.a, call.b, call.c, call.d);
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
  fiber->copy_count = fiber->group = fiber->line = 0;
}

static uint32_t random_number(void) {
  static uint64_t state;
  state = (state ? state : (uint64_t)settings.seed) * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(state >> 33);
}

/* The i-th of n in this turn, whose number is drawn. */
static int place(int i, int n, uint32_t number) {
  if (settings.order == 0) return i;
  if (settings.order == 1) return n - 1 - i;
  if (n == THREADS) return (int)(((uint32_t)i * (number | 1) + (number >> 8)) % THREADS);
  return (int)(((uint32_t)i + number) % (uint32_t)n);
}

/* ---- memory of the device, and shared: nothing is used twice, so that what is freed can't be touched */

static size_t mapped(size_t bytes) {
  const size_t page = (size_t)getpagesize();
  return (bytes + page - 1) / page * page + page;
}

uint8_t *region_take(size_t bytes) {
  static size_t used;
  const size_t size = mapped(bytes), page = (size_t)getpagesize();
  uint8_t *region = races_region(REGION);
  if (!region || used + size > REGION || mprotect(region + used, size - page, PROT_READ | PROT_WRITE)) return NULL;
  emulator.seen = region;
  emulator.seen_bytes = REGION;
  uint8_t *begin = region + used;
  used += size;
  memset(begin, 0xff, size - page);
  return begin + (size - page - bytes) / 256 * 256;
}

void region_give(uint8_t *memory, size_t bytes) {
  const size_t page = (size_t)getpagesize();
  uint8_t *begin = (uint8_t *)((uintptr_t)memory / page * page);
  madvise(begin, mapped(bytes) - page, MADV_DONTNEED);
  mprotect(begin, mapped(bytes) - page, PROT_NONE);
}

/* ---- a launch */

static void prepare_block(int number, size_t shared) {
  static size_t bytes[RACES_MOST_BLOCKS];
  struct block **place = &blocks[number];
  if (!*place) *place = calloc(1, sizeof **place);
  struct block *block = *place;
  if (bytes[number] != shared) {
    if (bytes[number]) region_give(block->shared, bytes[number]);
    block->shared = shared ? region_take(shared) : NULL;
    bytes[number] = shared;
  }
  if (shared) memset(block->shared, 0xff, shared);
  block->arrived = block->any = block->done = 0;
  memset(block->warp_arrived, 0, sizeof block->warp_arrived);
  for (int t = 0; t < THREADS; t++) make_fiber(&block->fibers[t]);
}

/* Whether a fiber waits for its turn only by the order of threads: at random some are left behind. */
static int has_turn(const struct fiber *fiber) {
  return fiber->state == READY && (settings.order != 2 || random_number() % 4);
}

void run_blocks(const struct call *given, int count, size_t shared) {
  if (count > RACES_MOST_BLOCKS) fail("the stand-in runs 16 blocks at most", 0);
  call = *given;
  for (int b = 0; b < count; b++) prepare_block(b, shared);
  races_launch(count);
  emulator.blocks = count;
  emulator.left_out = (int32_t)settings.left_out;
  int late = settings.late && count > 1;
  for (int left = count, idle = 0; left;) {
    progress = 0;
    const uint32_t shift = random_number();
    left = 0;
    for (int i = 0; i < count; i++) {
      emulator.block = place(i, count, shift);
      if (late && emulator.block == count - 1) continue;
      struct block *block = blocks[emulator.block];
      emulator.shared = block->shared;
      for (int j = 0; j < THREADS; j++) {
        emulator.thread = place(j, THREADS, shift);
        struct fiber *fiber = &block->fibers[emulator.thread];
        if (!has_turn(fiber)) continue;
        running = fiber;
        emulator_switch(&scheduler, fiber->stack_pointer);
      }
      left += block->done < THREADS;
    }
    if (late && !left) late = 0, left = 1;
    idle = progress ? 0 : idle + 1;
    if (idle > MOST_IDLE_TURNS) fail("threads wait for each other in vain", blocks[emulator.block]->fibers[0].line);
  }
}

void fibers_begin(void) {
  const uint8_t *seen = emulator.seen;
  const size_t bytes = emulator.seen_bytes;
  emulator = (struct emulator){.seen = seen,
                               .seen_bytes = bytes,
                               .sync = sync_block,
                               .sync_any = sync_any,
                               .sync_warp = sync_warp,
                               .from_lane = from_lane,
                               .share = share,
                               .arrive = arrive,
                               .look = look,
                               .look_at_host = look_at_host,
                               .copy = begin_copy,
                               .end_group = end_group,
                               .wait_copies = wait_copies,
                               .access = note_access,
                               .wait = wait_turn,
                               .fail = fail};
}
