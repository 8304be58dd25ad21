/* Phases: how the threads of a step share out blocks, and the barrier between two phases.
 *
 * Every thread runs the same host program, so all see the same phases with the same numbers of blocks. The counters are
 * never reset within a step; each thread knows from its own running sums (smc_thread.done and .claimed) which values
 * mean "this phase". Nobody waits for a thread that holds no block, and one that comes late finds every counter already
 * past and skips what is over. Numbers of blocks may therefore depend on smc_step's scalars only, never on the arena. */
#include "internal.h"

/* A share is handed out in about this many pieces: what a slow thread leaves behind can be stolen. */
#define PIECES 8

/* Thread t's share of a phase: `size` blocks from block `first` on. */
struct share {
  int64_t first, size;
};

static struct share share_of(int64_t total, int32_t threads, int32_t t) {
  const int64_t each = (int64_t)((uint32_t)total / (uint32_t)threads), more = total - each * threads;
  return (struct share){each * t + (t < more ? t : more), each + (t < more)};
}

void smc_phase_begin(struct smc_thread *thread, struct smc_phase *phase, int32_t task_count, const int32_t *blocks) {
  int64_t total = 0;
  for (int32_t i = 0; i < task_count; i++) total += blocks[i];
  *phase = (struct smc_phase){.task_count = task_count, .blocks = blocks, .total = total};
  /* A phase that is over offers nothing: a late thread looks at no share. */
  if (atomic_load_explicit(&thread->pool->done, memory_order_acquire) >= thread->done + total) phase->victim = thread->count;
}

/* Sets phase->task and ->begin to where block `block` of the phase lies; returns how many blocks its task still has. */
static int64_t locate(struct smc_phase *phase, int64_t block) {
  int32_t task = 0;
  while (block >= phase->blocks[task]) block -= phase->blocks[task++];
  phase->task = task;
  phase->begin = (int32_t)block;
  return phase->blocks[task] - block;
}

int smc_phase_claim(struct smc_thread *thread, struct smc_phase *phase) {
  for (; phase->victim < thread->count; phase->victim++) {
    const int32_t owner = (thread->index + phase->victim) % thread->count; /* oneself first */
    const struct share share = share_of(phase->total, thread->count, owner);
    const int64_t piece = share.size / PIECES > 1 ? share.size / PIECES : 1;
    _Atomic int64_t *claims = &thread->pool->claims[owner].count;
    int64_t value = atomic_load_explicit(claims, memory_order_relaxed);
    for (;;) {
      const int64_t taken = value - thread->claimed[owner];
      if (taken >= share.size) break;
      int64_t count = locate(phase, share.first + taken);
      if (count > piece) count = piece;
      if (count > share.size - taken) count = share.size - taken;
      if (!atomic_compare_exchange_weak_explicit(claims, &value, value + count, memory_order_relaxed, memory_order_relaxed))
        continue;
      phase->end = phase->begin + (int32_t)count;
      phase->finished += count;
      return 1;
    }
  }
  return 0;
}

int smc_phase_end(struct smc_thread *thread, struct smc_phase *phase) {
  struct smc_pool *pool = thread->pool;
  if (phase->finished) atomic_fetch_add_explicit(&pool->done, phase->finished, memory_order_acq_rel);
  thread->done += phase->total;
  for (int32_t t = 0; t < thread->count; t++) thread->claimed[t] += share_of(phase->total, thread->count, t).size;
  for (int turns = 0; atomic_load_explicit(&pool->done, memory_order_acquire) < thread->done; turns++) {
    if (atomic_load_explicit(&pool->abort, memory_order_relaxed)) return 1;
    smc_relax(turns);
  }
  return atomic_load_explicit(&pool->abort, memory_order_relaxed);
}

int smc_cancelled(const struct smc_thread *thread) {
  struct smc_pool *pool = thread->pool;
  if (atomic_load_explicit(pool->job.cancel, memory_order_relaxed)) atomic_store_explicit(&pool->abort, 1, memory_order_relaxed);
  return atomic_load_explicit(&pool->abort, memory_order_relaxed);
}
