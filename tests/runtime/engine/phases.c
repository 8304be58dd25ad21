/* Drives the thread pool and its phases without a model.
 *
 *   phases stress THREADS STEPS SEED   random phases: every block exactly once, each after all of the phase before
 *   phases late THREADS                workers that hold no block are not waited for
 *   phases uneven THREADS              a short share is taken at once, and in pieces when a thread was slow of late
 *   phases cancel THREADS STEPS        a step that is cancelled from inside ends, and the next one is whole
 *   phases prefetch THREADS               what a thread prefetches is where its share of the next phase begins
 *   phases place THREADS               workers keep off the caller's CPU, wherever it goes
 *   phases bench THREADS PHASES BLOCKS nanoseconds a phase
 *   phases quota MEMBERSHIP ROOT       CPUs that a cgroup gives
 *   phases memory MEMINFO MEMBERSHIP ROOT ENOUGH   bytes that the machine and a cgroup give
 *   phases fast ROOT COUNT             which of so many CPUs are fast
 *
 * Shared data is plain on purpose: where the barrier orders too little, the thread sanitizer sees it. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PHASES = 40, TASKS = 5, BLOCKS = 70 };

static _Atomic uint32_t cancel;
static int failures;

#define CHECK(condition)                                                                                               \
  do {                                                                                                                 \
    if (!(condition)) {                                                                                                \
      fprintf(stderr, "line %d: not %s\n", __LINE__, #condition);                                                      \
      failures++;                                                                                                      \
    }                                                                                                                  \
  } while (0)

static uint32_t next_random(uint32_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 17;
  return *state ^= *state << 5;
}

static struct smc_job job_of(void (*run)(struct smc_thread *, const struct smc_step *), int32_t seed) {
  static uint8_t scratch[1];
  return (struct smc_job){.run = run, .step = {.count = seed}, .scratch = scratch, .cancels = &cancel};
}

/* ---- stress */

static int32_t shapes[PHASES][TASKS];
static int32_t task_counts[PHASES];
static int32_t token_counts[PHASES];           /* of phases in pieces, else 0 */
static atomic_int hits[PHASES][TASKS][BLOCKS]; /* pieces have the same blocks */

/* Whether every block of a phase was run `wanted` times, for every token. */
static void check_phase(int phase, int wanted) {
  if (token_counts[phase]) wanted *= token_counts[phase];
  for (int task = 0; task < task_counts[phase]; task++)
    for (int block = 0; block < shapes[phase][task]; block++) CHECK(hits[phase][task][block] == wanted);
}

static void stress_run(struct smc_thread *thread, const struct smc_step *step) {
  for (int i = 0; i < PHASES; i++) {
    struct smc_phase phase;
    smc_phase_begin(thread, &phase, 0, task_counts[i], shapes[i]);
    const int32_t tokens = token_counts[i], piece = smc_piece_tokens(thread, tokens);
    if (tokens) smc_phase_pieces(&phase, tokens, piece);
    while (smc_phase_claim(thread, &phase)) {
      CHECK(phase.begin >= 0 && phase.begin < phase.end && phase.end <= shapes[i][phase.task]);
      if (tokens)
        CHECK(phase.token % piece == 0 && (piece == tokens || piece % 8 == 0) && phase.token + phase.tokens <= tokens);
      if (i > 0) check_phase(i - 1, step->count); /* the phase before is over and visible */
      for (int block = phase.begin; block < phase.end; block++)
        atomic_fetch_add(&hits[i][phase.task][block], tokens ? phase.tokens : 1);
    }
    if (smc_phase_end(thread, &phase)) return;
  }
}

static void stress(struct smc_pool *pool, int steps, uint32_t seed) {
  for (int i = 0; i < PHASES; i++) {
    task_counts[i] = (int32_t)(next_random(&seed) % TASKS) + 1;
    token_counts[i] = next_random(&seed) % 2 ? (int32_t)(next_random(&seed) % 300) : 0;
    for (int task = 0; task < task_counts[i]; task++) /* some tasks are empty, some phases too */
      shapes[i][task] = next_random(&seed) % 4 ? (int32_t)(next_random(&seed) % BLOCKS) : 0;
  }
  for (int step = 1; step <= steps; step++) {
    const struct smc_job job = job_of(stress_run, step);
    CHECK(smc_pool_run(pool, &job) == SMC_OK);
    for (int i = 0; i < PHASES; i++) check_phase(i, step);
    if (step % 100 == 0) usleep(next_random(&seed) % 1000); /* workers fall asleep, or are just about to */
  }
}

/* ---- late workers */

static atomic_int released, entered;

static void late_run(struct smc_thread *thread, const struct smc_step *step) {
  (void)step;
  if (thread->index > 0) {
    atomic_fetch_add(&entered, 1);
    while (!atomic_load(&released)) usleep(100); /* held up, as by another program: until the caller is through */
  } else {
    while (atomic_load(&entered) < thread->count - 1) usleep(100);
  }
  const int32_t blocks[] = {100};
  for (int i = 0; i < 10; i++) {
    struct smc_phase phase;
    smc_phase_begin(thread, &phase, 0, 1, blocks);
    while (smc_phase_claim(thread, &phase)) CHECK(thread->index == 0); /* nothing was left for the others */
    if (smc_phase_end(thread, &phase)) return;
  }
}

static void late(struct smc_pool *pool) {
  const struct smc_job job = job_of(late_run, 0);
  CHECK(smc_pool_run(pool, &job) == SMC_OK); /* returns, though nobody else has done anything */
  atomic_store(&released, 1);
  stress(pool, 3, 7); /* and the late ones do no harm */
}

/* ---- uneven threads */

static atomic_int held;

/* step->count: 0 to look at what threads take of their shares, else milliseconds that the last thread is at it. */
static void uneven_run(struct smc_thread *thread, const struct smc_step *step) {
  const int32_t each = 9, blocks[] = {thread->count * each}, end = (thread->index + 1) * each;
  const int uneven = thread->pool->uneven_jobs > 0, last = thread->index == thread->count - 1;
  while (step->count && !last && !atomic_load(&held)) usleep(100); /* else they would take its blocks */
  for (int i = 0; i < 10; i++) {
    struct smc_phase phase;
    smc_phase_begin(thread, &phase, 0, 1, blocks);
    while (smc_phase_claim(thread, &phase)) {
      if (last) atomic_store(&held, 1);
      if (last) usleep(1000 * (useconds_t)step->count);
      if (phase.begin < end - each || phase.begin >= end) continue; /* another's */
      const int32_t rest = end - phase.begin;
      CHECK(uneven ? phase.end - phase.begin <= (rest < 3 ? 1 : rest / 3) : phase.end == end);
    }
    if (smc_phase_end(thread, &phase)) return;
  }
}

static void idle_run(struct smc_thread *thread, const struct smc_step *step) {
  (void)thread;
  (void)step;
}

static void uneven(struct smc_pool *pool) {
  const struct smc_job look = job_of(uneven_run, 0), slow = job_of(uneven_run, 5), idle = job_of(idle_run, 0);
  CHECK(pool->uneven_jobs == 0);
  CHECK(smc_pool_run(pool, &look) == SMC_OK);
  CHECK(smc_pool_run(pool, &slow) == SMC_OK);
  CHECK(smc_pool_run(pool, &look) == SMC_OK);
  CHECK((pool->uneven_jobs > 0) == (pool->threads > 1));
  for (int i = 0; i < 100 && pool->uneven_jobs > 0; i++) CHECK(smc_pool_run(pool, &idle) == SMC_OK);
  CHECK(pool->uneven_jobs == 0); /* forgotten */
  CHECK(smc_pool_run(pool, &look) == SMC_OK);
}

/* ---- cancel */

static int blocks_run[SMC_MAX_THREADS];

/* In layer step->count somebody inside a block cancels and stays inside for a while: a worker, if there is one. */
static void cancel_run(struct smc_thread *thread, const struct smc_step *step) {
  for (int layer = 0; layer < 50; layer++) {
    const int last = layer == step->count, worker = thread->index > 0;
    while (last && !worker && thread->count > 1 && !atomic_load(&cancel)) usleep(10);
    if (smc_cancelled(thread)) return;
    const int32_t blocks[] = {thread->count * 4};
    struct smc_phase phase;
    smc_phase_begin(thread, &phase, 0, 1, blocks);
    while (smc_phase_claim(thread, &phase)) {
      if (last) {
        atomic_store(&cancel, 1);
        usleep(worker ? 500 : 0);
      }
      blocks_run[thread->index] += phase.end - phase.begin;
    }
    if (smc_phase_end(thread, &phase)) return;
  }
}

static int cancel_once(struct smc_pool *pool, int layer) {
  const struct smc_job job = job_of(cancel_run, layer);
  atomic_store(&cancel, 0);
  memset(blocks_run, 0, sizeof blocks_run); /* plain: after a cancelled step no worker may be inside */
  const int status = smc_pool_run(pool, &job);
  int total = 0;
  for (int t = 0; t < pool->threads; t++) total += blocks_run[t];
  if (layer < 49) CHECK(status == SMC_CANCELLED && total <= (layer + 1) * pool->threads * 4);
  if (layer >= 50) CHECK(status == SMC_OK && total == 50 * pool->threads * 4);
  return status;
}

static void cancel_steps(struct smc_pool *pool, int steps) {
  for (int i = 0; i < steps; i++) {
    cancel_once(pool, i % 49);
    cancel_once(pool, 50);
  }
}

/* ---- what is prefetched */

static uint8_t weights[1 << 17];
static const struct smc_stream streams[] = {{1024, 5, 4096}, {0, 0, 0}, {65536, 4, 64}};
static const uint8_t *asked[SMC_MAX_THREADS], *asked_end[SMC_MAX_THREADS];

static void prefetch_run(struct smc_thread *thread, const struct smc_step *step) {
  (void)step;
  const int32_t t = thread->index, blocks[] = {thread->count};
  atomic_fetch_add(&entered, 1);
  while (atomic_load(&entered) < thread->count) usleep(10); /* nobody comes too late */
  struct smc_phase phase;
  smc_phase_begin(thread, &phase, 0, 1, blocks);
  smc_phase_prefetch(thread, &phase, weights, streams, 3);
  asked[t] = phase.prefetch, asked_end[t] = phase.prefetch_end;
  while (smc_phase_claim(thread, &phase)) usleep(100 * (useconds_t)t); /* all but the last wait, and ask */
  CHECK(phase.prefetch <= phase.prefetch_end);
  if (smc_phase_end(thread, &phase)) return;
  CHECK(phase.prefetch <= phase.prefetch_end);
}

static void prefetch(struct smc_pool *pool) {
  const struct smc_job job = job_of(prefetch_run, 0);
  CHECK(smc_pool_run(pool, &job) == SMC_OK);
  smc_pool_await(pool);
  const int64_t total = 9;
  for (int32_t t = 0; t < pool->threads; t++) {
    const struct smc_share share = smc_share_of(total, pool->threads, t);
    if (share.size == 0) {
      CHECK(asked[t] == NULL && asked_end[t] == NULL);
      continue;
    }
    const uint64_t begin =
        share.first < 5 ? 1024 + (uint64_t)share.first * 4096 : 65536 + (uint64_t)(share.first - 5) * 64;
    const uint64_t end = share.first < 5 ? 1024 + 5 * 4096 : 65536 + 4 * 64; /* of the stream */
    CHECK(asked[t] == weights + begin && asked_end[t] > asked[t] && asked_end[t] <= weights + end);
  }
}

/* ---- placement */

static void check_placement(const struct smc_pool *pool, int caller) {
  cpu_set_t all = {0}, mask;
  for (int t = 1; t < pool->threads; t++) {
    CHECK(sched_getaffinity(atomic_load(&pool->workers[t].id), sizeof mask, &mask) == 0);
    CHECK(!CPU_ISSET((size_t)caller, &mask));
    CHECK(CPU_COUNT(&mask) == (CPU_COUNT(&pool->allowed) == pool->threads ? 1 : CPU_COUNT(&pool->allowed) - 1));
    CPU_OR(&all, &all, &mask);
  }
  CHECK(CPU_COUNT(&all) == CPU_COUNT(&pool->allowed) - 1); /* together they have all other CPUs */
}

static void place(struct smc_pool *pool) {
  const struct smc_job job = job_of(idle_run, 0);
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET((size_t)cpu, &pool->allowed)) continue;
    cpu_set_t one = {0};
    CPU_SET((size_t)cpu, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
    CHECK(smc_pool_run(pool, &job) == SMC_OK);
    check_placement(pool, cpu);
  }
}

/* ---- bench */

static void bench_run(struct smc_thread *thread, const struct smc_step *step) {
  const int32_t blocks[] = {step->tile_count};
  for (int i = 0; i < step->count; i++) {
    struct smc_phase phase;
    smc_phase_begin(thread, &phase, 0, 1, blocks);
    while (smc_phase_claim(thread, &phase)) continue;
    if (smc_phase_end(thread, &phase)) return;
  }
}

static void bench(struct smc_pool *pool, int phases, int blocks) {
  struct smc_job job = job_of(bench_run, phases);
  job.step.tile_count = blocks;
  double best = 1e9;
  for (int repeat = 0; repeat < 20; repeat++) {
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    CHECK(smc_pool_run(pool, &job) == SMC_OK);
    clock_gettime(CLOCK_MONOTONIC, &end);
    const double time = ((double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec)) / phases;
    printf("%.1f ", time);
    if (time < best) best = time;
  }
  printf("ns a phase, best %.1f\n", best);
}

int main(int count, char **arguments) {
  if (count == 4 && !strcmp(arguments[1], "quota")) {
    printf("%d\n", smc_quota_cpus(arguments[2], arguments[3]));
    return 0;
  }
  if (count == 6 && !strcmp(arguments[1], "memory")) {
    printf("%llu\n", (unsigned long long)smc_memory_left(arguments[2], arguments[3], arguments[4],
                                                         strtoull(arguments[5], NULL, 10)));
    return 0;
  }
  if (count == 4 && !strcmp(arguments[1], "fast")) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    for (int cpu = 0; cpu < atoi(arguments[3]); cpu++) CPU_SET((size_t)cpu, &cpus);
    smc_keep_fast_cpus(arguments[2], &cpus);
    for (int cpu = 0; cpu < atoi(arguments[3]); cpu++)
      if (CPU_ISSET((size_t)cpu, &cpus)) printf("%d ", cpu);
    return 0;
  }
  if (count < 3) return 2;
  struct smc_pool *pool;
  if (smc_pool_create(atoi(arguments[2]), &pool)) return 2;
  if (count == 5 && !strcmp(arguments[1], "stress")) stress(pool, atoi(arguments[3]), (uint32_t)atoi(arguments[4]));
  else if (count == 3 && !strcmp(arguments[1], "late")) late(pool);
  else if (count == 3 && !strcmp(arguments[1], "uneven")) uneven(pool);
  else if (count == 4 && !strcmp(arguments[1], "cancel")) cancel_steps(pool, atoi(arguments[3]));
  else if (count == 3 && !strcmp(arguments[1], "prefetch")) prefetch(pool);
  else if (count == 3 && !strcmp(arguments[1], "place")) place(pool);
  else if (count == 5 && !strcmp(arguments[1], "bench")) bench(pool, atoi(arguments[3]), atoi(arguments[4]));
  else return 2;
  smc_pool_destroy(pool);
  return failures != 0;
}
