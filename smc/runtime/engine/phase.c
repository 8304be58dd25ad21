/* Phases: how the threads of a step share out blocks, and the barrier between two phases.
 *
 * Every thread runs the same host program, so all see the same phases with the same numbers of blocks. The counters are
 * never reset within a step; each thread knows from its own running sums (smc_thread.done and .claimed) which values
 * mean "this phase". Nobody waits for a thread that holds no block, and one that comes late finds every counter already
 * past and skips what is over. Numbers of blocks may therefore depend on smc_step's scalars only, never on the arena.
 *
 * A phase costs cache lines that travel between cores, 100-150 ns each. So every thread counts on lines of its
 * own; in a phase that is well balanced only the counts of finished blocks travel, and those once. */
#include "internal.h"

/* A piece is this part of a share's rest, and at least that part of the whole share: other threads can take the rest
 * from a slow thread, and the last pieces, for which all wait, are small. */
#define PIECE_OF_REST 3
#define PIECE_OF_SHARE 32
/* In a step of at most so many tokens, a thread takes a share of at most so many blocks at once, unless threads are
 * uneven. Weights are read as streams, each slow until the CPU's prefetchers detect it, and gate and up begin new ones
 * in every piece: that costs more than sharing gains. */
#define WHOLE_TOKENS 8
#define WHOLE_BLOCKS 16
/* A thread that waits longer than so many spins, 2 µs, measures the time. */
#define LONG_WAIT 64

/* A thread without blocks waits so many spins for the others before it looks at their shares. */
#define GRACE 32

/* A piece, which reads all weights, has at least so many tokens. */
#define LEAST_PIECE 64

/* A waiting thread prefetches so much of the next phase's weights, a few lines per spin: else memory would idle while
 * the last thread finishes. More would slow down that thread. */
#define PREFETCH_BYTES 16384
#define LINES_PER_SPIN 4

void smc_phase_begin(struct smc_thread *thread, struct smc_phase *phase, int32_t first_task, int32_t task_count,
                     const int32_t *blocks) {
  (void)thread;
  int64_t total = 0;
  for (int32_t i = 0; i < task_count; i++) total += blocks[i];
  *phase = (struct smc_phase){
      .first_task = first_task, .task_count = task_count, .blocks = blocks, .total = total, .piece_blocks = total};
}

int32_t smc_piece_tokens(const struct smc_thread *thread, int32_t tokens) {
  const int32_t most = tokens / LEAST_PIECE, pieces = most < thread->count ? most : thread->count;
  if (pieces <= 1) return tokens;
  const int32_t even = (tokens + pieces - 1) / pieces;
  return (int32_t)smc_round_up((uint64_t)even, SMC_TOKEN_BLOCK);
}

void smc_phase_pieces(struct smc_phase *phase, int32_t tokens, int32_t piece_tokens) {
  if (tokens == 0) return;
  phase->all_tokens = tokens;
  phase->piece_tokens = piece_tokens;
  phase->total = phase->piece_blocks * ((tokens + piece_tokens - 1) / piece_tokens);
}

void smc_phase_prefetch(const struct smc_thread *thread, struct smc_phase *phase, const uint8_t *weights,
                        const struct smc_stream *streams, int32_t count) {
  int64_t total = 0;
  for (int32_t i = 0; i < count; i++) total += streams[i].blocks;
  const struct smc_share share = smc_share_of(total, thread->count, thread->index);
  if (share.size == 0) return;
  int64_t block = share.first;
  while (block >= streams->blocks) block -= streams++->blocks;
  const int64_t left = (streams->blocks - block) * streams->block_bytes;
  phase->prefetch = weights + streams->begin + (uint64_t)block * (uint64_t)streams->block_bytes;
  phase->prefetch_end = phase->prefetch + (left < PREFETCH_BYTES ? left : PREFETCH_BYTES);
}

static void prefetch_some(struct smc_phase *phase) {
  for (int i = 0; i < LINES_PER_SPIN && phase->prefetch < phase->prefetch_end; i++, phase->prefetch += SMC_PREFETCHED)
    __builtin_prefetch(phase->prefetch);
}

/* Sets phase->task and ->begin to where block `block` of the phase lies, and its piece's tokens; returns how many
 * blocks the task still has there. */
static int64_t locate(struct smc_phase *phase, int64_t block) {
  int32_t task = 0;
  phase->token = (int32_t)(block / phase->piece_blocks) * phase->piece_tokens;
  const int32_t rest = phase->all_tokens - phase->token;
  phase->tokens = rest < phase->piece_tokens ? rest : phase->piece_tokens;
  block %= phase->piece_blocks;
  while (block >= phase->blocks[task]) block -= phase->blocks[task++];
  phase->task = task;
  phase->begin = (int32_t)block;
  return phase->blocks[task] - block;
}

/* How many blocks to take from a share of `size` blocks with `rest` left: the thread's own or another's. */
static int64_t piece_of(const struct smc_pool *pool, int is_own, int64_t size, int64_t rest) {
  if (is_own && size <= WHOLE_BLOCKS && pool->job.step.count <= WHOLE_TOKENS && pool->uneven_jobs == 0) return rest;
  const int64_t part = rest / PIECE_OF_REST, least = size / PIECE_OF_SHARE, piece = part > least ? part : least;
  return piece < 1 ? 1 : piece < rest ? piece : rest;
}

/* Takes the next piece of a thread's share, if there is one. */
static int claim_from(struct smc_thread *thread, struct smc_phase *phase, int32_t owner) {
  const struct smc_share share = smc_share_of(phase->total, thread->count, owner);
  _Atomic int64_t *claimed = &thread->pool->counters[owner].claimed;
  int64_t value = atomic_load_explicit(claimed, memory_order_relaxed);
  for (;;) {
    const int64_t taken = value - thread->claimed[owner];
    if (taken >= share.size) return 0;
    const int64_t piece = piece_of(thread->pool, owner == thread->index, share.size, share.size - taken);
    const int64_t same_task = locate(phase, share.first + taken);
    const int64_t count = piece < same_task ? piece : same_task;
    if (!atomic_compare_exchange_weak_explicit(claimed, &value, value + count, memory_order_relaxed,
                                               memory_order_relaxed))
      continue;
    phase->end = phase->begin + (int32_t)count;
    phase->finished += count;
    return 1;
  }
}

/* Publishes the number of blocks that this thread has finished. */
static void publish(const struct smc_thread *thread, struct smc_phase *phase) {
  if (phase->finished == 0) return;
  _Atomic int64_t *finished = &thread->pool->counters[thread->index].finished;
  atomic_store_explicit(finished, atomic_load_explicit(finished, memory_order_relaxed) + phase->finished,
                        memory_order_release);
  phase->finished = 0;
}

/* Whether `target` blocks are finished, by all threads since the step began. The counts are read one after the other: a
 * late one may include blocks of the next phase, but a thread that runs those has seen the end of this phase, and so
 * has a thread that sees them. */
static int is_finished(const struct smc_thread *thread, int64_t target) {
  int64_t sum = 0;
  for (int32_t t = 0; t < thread->count; t++)
    sum += atomic_load_explicit(&thread->pool->counters[t].finished, memory_order_acquire);
  return sum >= target;
}

static int is_aborted(const struct smc_thread *thread) {
  return atomic_load_explicit(&thread->pool->abort, memory_order_relaxed);
}

static int claim(struct smc_thread *thread, struct smc_phase *phase) {
  if (phase->victim == 0) {
    if (claim_from(thread, phase, thread->index)) return 1;
    publish(thread, phase);
    for (int turns = 0; turns < GRACE; turns++) {
      if (is_finished(thread, thread->done + phase->total) || is_aborted(thread)) return 0;
      prefetch_some(phase);
      smc_relax(turns);
    }
    phase->victim = 1;
  }
  publish(thread, phase);
  for (; phase->victim < thread->count; phase->victim++)
    if (claim_from(thread, phase, (thread->index + phase->victim) % thread->count)) return 1;
  return 0;
}

int smc_phase_claim(struct smc_thread *thread, struct smc_phase *phase) {
  if (!thread->profile) return claim(thread, phase);
  smc_profile_look(thread->profile, phase);
  const int got = claim(thread, phase);
  smc_profile_found(thread->profile, phase, got);
  return got;
}

int smc_phase_end(struct smc_thread *thread, struct smc_phase *phase) {
  thread->done += phase->total;
  for (int32_t t = 0; t < thread->count; t++) thread->claimed[t] += smc_share_of(phase->total, thread->count, t).size;
  int64_t start = 0;
  for (int turns = 0; !is_finished(thread, thread->done); turns++) {
    if (is_aborted(thread)) return 1;
    if (turns == LONG_WAIT) start = smc_nanoseconds();
    prefetch_some(phase);
    smc_relax(turns);
  }
  if (start) thread->pool->counters[thread->index].waited += smc_nanoseconds() - start;
  if (thread->profile) smc_profile_pass(thread->profile, phase);
  return is_aborted(thread);
}

int smc_cancelled(const struct smc_thread *thread) {
  struct smc_pool *pool = thread->pool;
  const uint32_t cancels = atomic_load_explicit(pool->job.cancels, memory_order_relaxed);
  if (cancels != pool->job.cancels_seen) atomic_store_explicit(&pool->abort, 1, memory_order_relaxed);
  return is_aborted(thread);
}
