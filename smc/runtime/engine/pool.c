/* The thread pool: the caller's thread is thread 0, the others are workers of the engine.
 *
 * A job is offered by a ticket. A worker that is awake enters it; one that sleeps too long finds it closed and is not
 * missed. The caller needs only the blocks to be done, so a job ends while workers may still be on their way out; they
 * read nothing but counters then, and the next job begins when they have left. */
#include "internal.h"

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#define MAGIC 0x736d6370u /* "smcp" */
#define OPEN (UINT64_C(1) << 31)
#define INSIDE (OPEN - 1)
#define SPINS 256 /* 5 µs, then yield: a thread that only spins loses whole time slices if other programs run */
#define IDLE_NANOSECONDS 200000 /* a worker looks this long for a job before it sleeps: waking costs 5–50 µs */
/* Threads are uneven for so many jobs after one of them has waited for more than this part of a job. */
#define UNEVEN_JOBS 16
#define LONG_PART 4

void smc_relax(int turns) {
  if (turns >= SPINS) {
    sched_yield();
    return;
  }
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("isb" ::: "memory"); /* waits about as long as x86's pause; `yield` is a nop on most cores */
#endif
}

static uint32_t epoch_of(uint64_t ticket) { return (uint32_t)(ticket >> 32); }

static void run_job(struct smc_pool *pool, int32_t index) {
  struct smc_thread thread = {.index = index, .count = pool->threads, .pool = pool};
  thread.scratch = pool->job.scratch + (uint64_t)index * pool->job.scratch_stride;
  if (pool->job.profile) {
    thread.profile = &pool->job.profile[index];
    smc_profile_enter(thread.profile);
  }
  pool->job.run(&thread, &pool->job.step);
}

/* Returns when a job that this worker has not seen is offered, or at the pool's end. */
static void await_ticket(struct smc_pool *pool, uint32_t seen) {
  const int64_t start = smc_nanoseconds();
  for (int turns = 0;; turns++) {
    if (epoch_of(atomic_load_explicit(&pool->ticket, memory_order_acquire)) != seen) return;
    if (atomic_load_explicit(&pool->quit, memory_order_relaxed)) return;
    smc_relax(turns);
    if (turns % 16 == 15 && smc_nanoseconds() - start > IDLE_NANOSECONDS) break;
    if (turns > 1 << 20) turns = SPINS;
  }
  pthread_mutex_lock(&pool->sleep_mutex);
  atomic_fetch_add(&pool->sleepers,
                   1); /* sequentially consistent, like the ticket's store: one of the two sees the other */
  while (epoch_of(atomic_load(&pool->ticket)) == seen && !atomic_load(&pool->quit))
    pthread_cond_wait(&pool->wake, &pool->sleep_mutex);
  atomic_fetch_sub(&pool->sleepers, 1);
  pthread_mutex_unlock(&pool->sleep_mutex);
}

static void *work(void *argument) {
  struct smc_worker *worker = argument;
  struct smc_pool *pool = worker->pool;
  atomic_store(&worker->id, smc_thread_id());
  uint32_t seen = 0; /* no job has this epoch */
  for (;;) {
    await_ticket(pool, seen);
    if (atomic_load_explicit(&pool->quit, memory_order_relaxed)) return NULL;
    uint64_t ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    while ((ticket & OPEN) && !atomic_compare_exchange_weak_explicit(&pool->ticket, &ticket, ticket + 1,
                                                                     memory_order_acq_rel, memory_order_acquire))
      continue;
    seen = epoch_of(ticket);
    if (!(ticket & OPEN)) continue;
    run_job(pool, worker->index);
    atomic_fetch_sub_explicit(&pool->ticket, 1, memory_order_release);
  }
}

static void wake_all(struct smc_pool *pool) {
  if (!atomic_load(&pool->sleepers)) return;
  pthread_mutex_lock(&pool->sleep_mutex);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->sleep_mutex);
}

/* Waits until every worker has left the last job; returns the ticket. */
static uint64_t await_leaving(struct smc_pool *pool) {
  uint64_t ticket;
  for (int turns = 0; (ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire)) & INSIDE; turns++)
    smc_relax(turns);
  return ticket;
}

/* After every job: whether threads are uneven, so that one has waited long for others that get less CPU time. */
static void look_for_waits(struct smc_pool *pool) {
  int64_t longest = 0;
  for (int32_t t = 0; t < pool->threads; t++) {
    if (pool->counters[t].waited > longest) longest = pool->counters[t].waited;
    pool->counters[t].waited = 0;
  }
  if (longest > pool->job_time / LONG_PART) pool->uneven_jobs = UNEVEN_JOBS;
  else if (pool->uneven_jobs > 0) pool->uneven_jobs--;
}

int smc_pool_run(struct smc_pool *pool, const struct smc_job *job) {
  pthread_mutex_lock(&pool->running);
  const uint64_t last = await_leaving(pool);
  look_for_waits(pool);
  if (pool->threads > 1) smc_follow_caller(pool);
  const int64_t start = smc_nanoseconds();
  pool->job = *job;
  atomic_store_explicit(&pool->abort, 0, memory_order_relaxed);
  for (int32_t t = 0; t < pool->threads; t++) {
    atomic_store_explicit(&pool->counters[t].claimed, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->counters[t].finished, 0, memory_order_relaxed);
  }
  if (pool->threads > 1) {
    const uint32_t epoch = epoch_of(last) + 1;
    atomic_store(&pool->ticket, (uint64_t)(epoch ? epoch : 1) << 32 | OPEN);
    wake_all(pool);
  }
  run_job(pool, 0);
  pool->job_time = smc_nanoseconds() - start;
  atomic_fetch_and_explicit(&pool->ticket, ~OPEN, memory_order_acq_rel);
  const int cancelled = atomic_load_explicit(&pool->abort, memory_order_relaxed);
  if (cancelled) await_leaving(pool); /* a worker may still be inside a block and write */
  pthread_mutex_unlock(&pool->running);
  return cancelled ? SMC_CANCELLED : SMC_OK;
}

void smc_pool_await(struct smc_pool *pool) {
  pthread_mutex_lock(&pool->running);
  await_leaving(pool);
  pthread_mutex_unlock(&pool->running);
}

int smc_pool_create(int32_t threads, struct smc_pool **result) {
  *result = NULL;
  if (threads < 0 || threads > SMC_MAX_THREADS) return SMC_BAD_INPUT;
  if (threads == 0) threads = smc_default_threads();
  void *memory;
  if (posix_memalign(&memory, SMC_CACHE_LINE, sizeof(struct smc_pool))) return SMC_NO_MEMORY;
  struct smc_pool *pool = memory;
  *pool = (struct smc_pool){.magic = MAGIC, .abi_version = SMC_ABI_VERSION, .threads = 1, .process = getpid()};
  pthread_mutex_init(&pool->running, NULL);
  pthread_mutex_init(&pool->sleep_mutex, NULL);
  pthread_cond_init(&pool->wake, NULL);
  /* Signals are the program's: none is ever delivered to a worker. */
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int status = 0;
  for (int32_t t = 1; t < threads && status == 0; t++) {
    pool->workers[t] = (struct smc_worker){.pool = pool, .index = t, .cpu = -1};
    status = pthread_create(&pool->workers[t].handle, NULL, work, &pool->workers[t]);
    if (status == 0) pool->threads++;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (status != 0) {
    smc_pool_destroy(pool);
    return SMC_FAILED;
  }
  for (int32_t t = 1; t < threads; t++)
    for (int turns = 0; !atomic_load(&pool->workers[t].id); turns++) smc_relax(turns);
  smc_place_workers(pool);
  *result = pool;
  return SMC_OK;
}

void smc_pool_destroy(struct smc_pool *pool) {
  if (!pool) return;
  if (pool->process == getpid()) { /* a forked child has no workers */
    atomic_store(&pool->quit, 1);
    pthread_mutex_lock(&pool->sleep_mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->sleep_mutex);
    for (int32_t t = 1; t < pool->threads; t++) pthread_join(pool->workers[t].handle, NULL);
  }
  pool->magic = 0;
  free(pool);
}

int smc_pool_valid(const struct smc_pool *pool) { return pool->magic == MAGIC && pool->abi_version == SMC_ABI_VERSION; }
