/* Shared declarations of the engine's files. Nothing here crosses the boundary of program.so, except that a pool may be
 * lent to the engine of another program.so. The layout of struct smc_pool is therefore part of SMC_ABI_VERSION. */
#ifndef SMC_INTERNAL_H
#define SMC_INTERNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_setaffinity, madvise: so this header comes first everywhere */
#endif
#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>

#include "program.h"

#if !defined(__linux__)
typedef struct cpu_set {
  char none;
} cpu_set_t; /* elsewhere no program may say where its threads run */
#endif

#define SMC_PREFETCHED 64  /* bytes that one prefetch brings, at least */
#define SMC_CACHE_LINE 128 /* two lines of 64 bytes: adjacent ones are prefetched in pairs */

#define SMC_SAYS_NOT_FINITE                                                                                            \
  "the model's results are NaN or infinite: its weights or its input go beyond what the arithmetic holds"

/* Writes the sentence into error[SMC_ERROR_BYTES], unless that is NULL, and returns status. */
int smc_fail(char *error, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));

static inline uint64_t smc_round_up(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/* ---- phase.c: blocks and barriers */

/* Thread t's share of a phase: `size` blocks from block `first` on. */
struct smc_share {
  int64_t first, size;
};

static inline struct smc_share smc_share_of(int64_t total, int32_t threads, int32_t t) {
  const int64_t each = (int64_t)((uint32_t)total / (uint32_t)threads), more = total - each * threads;
  return (struct smc_share){each * t + (t < more ? t : more), each + (t < more)};
}

/* ---- pool.c: the threads */

/* Work that the threads run together. It ends early (smc_cancelled) when the model's count of cancellations differs
 * from the one that its caller saw. */
struct smc_job {
  void (*run)(struct smc_thread *thread, const struct smc_step *step);
  struct smc_step step; /* by value: workers on their way out of a step still look at it */
  uint8_t *scratch;
  uint64_t scratch_stride;
  const _Atomic uint32_t *cancels;
  uint32_t cancels_seen;
  struct smc_thread_profile *profile; /* [threads], or NULL */
};

/* One thread's counts of blocks since the step began, each on a cache line of its own. */
struct smc_counters {
  alignas(SMC_CACHE_LINE) _Atomic int64_t claimed;  /* of the thread's shares, by any thread: others steal from it */
  int64_t waited;                                   /* the thread's own: nanoseconds of long waits in this job */
  alignas(SMC_CACHE_LINE) _Atomic int64_t finished; /* by the thread, from any share: others watch it */
};

struct smc_worker {
  struct smc_pool *pool;
  int32_t index;
  pthread_t handle;
  atomic_int id; /* smc_thread_id, 0 until the worker runs */
  int32_t cpu;   /* the CPU it is pinned to, or -1 */
};

struct smc_pool {
  uint32_t magic, abi_version;
  int32_t threads, process; /* the caller's thread included; the process that created the pool */
  pthread_mutex_t running;  /* held during a job: models that share a pool alternate */
  struct smc_job job;
  int32_t placing;     /* whether workers are kept off the caller's CPU, … */
  int32_t caller_cpu;  /* … which was this one at the last look */
  cpu_set_t allowed;   /* CPUs that the pool may use */
  int64_t job_time;    /* nanoseconds of the last job */
  int32_t uneven_jobs; /* for so many more jobs, threads may take blocks of others that these have not begun */
  /* Which job runs: epoch << 32 | open << 31 | number of workers inside. */
  alignas(SMC_CACHE_LINE) _Atomic uint64_t ticket;
  alignas(SMC_CACHE_LINE) atomic_int abort;
  alignas(SMC_CACHE_LINE) atomic_int sleepers;
  atomic_int quit;
  pthread_mutex_t sleep_mutex;
  pthread_cond_t wake;
  struct smc_counters counters[SMC_MAX_THREADS];
  struct smc_worker workers[SMC_MAX_THREADS];
};

/* Signals the CPU, and after `turns` spins the scheduler, that this thread waits. */
void smc_relax(int turns);

int smc_pool_create(int32_t threads, struct smc_pool **pool); /* SMC_OK, SMC_BAD_INPUT, SMC_NO_MEMORY or SMC_FAILED */
void smc_pool_destroy(struct smc_pool *pool);
int smc_pool_valid(const struct smc_pool *pool);
/* Runs the job on all threads, the caller's included: SMC_OK or SMC_CANCELLED. */
int smc_pool_run(struct smc_pool *pool, const struct smc_job *job);
void smc_pool_await(struct smc_pool *pool); /* until every worker has left the last job */

/* ---- profile.c: where the time goes
 *
 * A thread's time is cut at every claim and barrier, and every piece added to one counter: the parts add up to the
 * whole. */

/* Of one thread and task, in ticks. */
struct smc_task_time {
  int64_t kernel, wait, calls, pieces;
};

struct smc_thread_profile {
  alignas(SMC_CACHE_LINE) int64_t last; /* up to here the thread's time is accounted for */
  int64_t claim, outside;
  struct smc_task_time *tasks; /* [task_count] */
};

struct smc_profiler {
  const struct smc_program *program;
  int32_t on, threads;
  int64_t begin, end;         /* of the last step, in ticks */
  int64_t started;            /* … in nanoseconds */
  int64_t ticks, nanoseconds; /* of all steps */
  uint64_t steps, tokens;
  struct smc_thread_profile *times; /* [threads] */
  smc_profile_task *tasks;          /* [task_count] */
  void *memory;                     /* of all of them */
};

int smc_profile_start(struct smc_profiler *profiler, const struct smc_program *program,
                      int32_t threads); /* or SMC_NO_MEMORY */
void smc_profile_stop(struct smc_profiler *profiler, smc_profile *profile);
void smc_profile_close(struct smc_profiler *profiler);
/* Around a call of step(); all workers must have left the last job. */
void smc_profile_step_begin(struct smc_profiler *profiler);
void smc_profile_step_end(struct smc_profiler *profiler);
void smc_profile_count(struct smc_profiler *profiler, const struct smc_step *step); /* the counts of a step */
/* For devices that time a step's phases themselves: another call of a task, and its seconds. */
void smc_profile_add(struct smc_profiler *profiler, int32_t task, double seconds);
/* Called by a thread that has a profile: when it enters a job; before and after it looks for blocks; behind the
 * barrier. */
void smc_profile_enter(struct smc_thread_profile *profile);
void smc_profile_look(struct smc_thread_profile *profile, const struct smc_phase *phase);
void smc_profile_found(struct smc_thread_profile *profile, const struct smc_phase *phase, int got);
void smc_profile_pass(struct smc_thread_profile *profile, const struct smc_phase *phase);

int64_t smc_nanoseconds(void); /* of a monotonic clock */

/* ---- argmax.c: the largest logits, which every thread finds among those that it computed */

void smc_argmax_clear(const struct smc_step *step, int32_t threads);
/* The id for the step's i-th token that requests one; -1 if the largest is infinite or all are NaN. */
int32_t smc_argmax_of(const struct smc_step *step, int32_t threads, int32_t i);

/* ---- cpu/limits.c: the limits of the machine */

int smc_measure_limits(struct smc_pool *pool, const struct smc_level *level, const void *weights, uint64_t weight_bytes,
                       smc_limits *limits); /* SMC_OK or SMC_NO_MEMORY */

/* ---- placement.c: how many threads, and on which CPUs */

int smc_default_threads(void);
int smc_thread_id(void); /* by which the calling thread can be placed; never 0 */
#if defined(__linux__)
/* CPUs that the cgroup quota gives, rounded up, or 0 for no limit; see smc_cgroup_levels. */
int smc_quota_cpus(const char *membership, const char *root);
/* Takes the CPUs from the set that are less than half as fast as the fastest, where the system says how fast they are.
 * `root` is /sys/devices/system/cpu. */
void smc_keep_fast_cpus(const char *root, cpu_set_t *cpus);
#endif
void smc_place_workers(struct smc_pool *pool); /* at creation, by the caller's thread */
void smc_follow_caller(struct smc_pool *pool); /* before a job: makes room where the caller's thread has moved */

/* ---- cgroup.c: what a container may use */

/* Of a cgroup's directory; version: 1 or 2. */
typedef void smc_cgroup_visit(void *context, const char *directory, int version);
/* Visits all levels of the process's cgroups that have the controller ("cpu"), from its own up to the mount.
 * `membership` is /proc/self/cgroup, `root` where the cgroup file systems are mounted. */
void smc_cgroup_levels(const char *membership, const char *root, const char *controller, smc_cgroup_visit *visit,
                       void *context);
/* The first line of a file into line[size]; 0 where there is none. */
int smc_read_line(const char *path, char *line, int size);

/* ---- memory.c: how much there is */

/* The least number of bytes that the machine and the process's cgroups can still give; UINT64_MAX if unknown. Cached
 * files count as free; they are read only if less than `enough` is free without them. */
uint64_t smc_available_memory(uint64_t enough);
/* The same for other files than /proc/meminfo, /proc/self/cgroup and /sys/fs/cgroup. */
uint64_t smc_memory_left(const char *meminfo, const char *membership, const char *root, uint64_t enough);

/* ---- cpu.c: the features of this CPU */

/* Whether the CPU has the LLVM feature of that name; an unknown name counts as missing. */
int smc_cpu_has(const char *feature, size_t length);
/* Appends the features of a comma-separated list that the CPU lacks to missing[size], each once; returns how many. */
int smc_cpu_missing(const char *features, char *missing, size_t size);
/* How many bytes ahead matmuls of a few tokens prefetch weights on this CPU; 0: not at all. SMC_PREFETCH says another.
 */
int32_t smc_prefetch_distance(void);

/* ---- crc.c */

/* The CRC-32 of data with the checksum `crc` (of nothing: 0) followed by data[0..bytes). */
uint32_t smc_crc32(uint32_t crc, const void *data, uint64_t bytes);
/* The CRC-32 of data with the checksum `first` and of `bytes` bytes with the checksum `second` behind it. */
uint32_t smc_crc32_join(uint32_t first, uint32_t second, uint64_t bytes);

/* ---- artifact.c: the file */

/* A stored member of a ZIP file: where it lies, and the CRC-32 that it should have. */
struct smc_member {
  uint64_t offset, length;
  uint32_t crc;
};

struct smc_artifact {
  const uint8_t *data; /* the whole file or a copy of the weights, read-only */
  uint64_t size;
  const uint8_t *weights; /* the member, SMC_MEMBER_ALIGNMENT-aligned in the file */
  uint64_t weight_bytes;
  uint32_t crc; /* that the weights should have, and … */
  int checked;  /* … whether they have it, if that was checked */
};
#define SMC_MEMBER_ALIGNMENT 65536

/* Finds a stored member in the ZIP file data[0..size) after checking that every member lies inside. */
int smc_zip_find(const uint8_t *data, uint64_t size, const char *name, struct smc_member *member, char *error);
/* The index-th member, whose name is copied to name[SMC_NAME_BYTES], cut to that; SMC_NO_SPACE behind the last one. */
#define SMC_NAME_BYTES 65
int smc_zip_member(const uint8_t *data, uint64_t size, uint64_t index, char *name, struct smc_member *member,
                   char *error);
/* Maps the file, or reads it if it can't be mapped, without checking it; open also finds its weights. */
int smc_artifact_map(struct smc_artifact *artifact, const char *path, char *error);
int smc_artifact_open(struct smc_artifact *artifact, const char *path, uint64_t weight_bytes, char *error);
/* Compares the weights with their checksum, all of them: SMC_OK, SMC_BAD_INPUT, or SMC_CANCELLED when *cancels is no
 * longer `seen`. */
int smc_artifact_check(struct smc_artifact *artifact, const _Atomic uint32_t *cancels, uint32_t seen, char *error);
int smc_artifact_damaged(char *error); /* says that the weights are: SMC_BAD_INPUT */
void smc_artifact_close(struct smc_artifact *artifact);

/* ---- huge_pages.c */

/* Replaces the mapped file by a copy of its weights where that is faster, and checks them as it goes: SMC_OK or
 * SMC_BAD_INPUT. A second thread helps where the model has several. */
int smc_weights_to_huge_pages(struct smc_artifact *artifact, int32_t threads, char *error);
/* The region will be read again and again: use huge pages for all of it that lies in whole ones. */
void smc_advise_huge_pages(void *begin, uint64_t bytes);

/* ---- kv_cache.c: pages of SMC_PAGE_TOKENS tokens for each group of layers, found by one block table per sequence */

#define SMC_KV_ROLLBACK                                                                                                \
  64 /* tokens that a window keeps in addition to what it needs: so many can be taken back without computing */

struct smc_sequence {
  int32_t live, length;
  int32_t pending; /* tokens of the running batch */
  int32_t stale;   /* windows lack K and V that the next token sees: all tokens are computed once more first */
};

/* A token of a sequence whose windows may have to be computed once more. */
struct smc_past_token {
  int32_t token, position;
};

/* Pages begin … end - 1 of a sequence's block table are its own or shared; a window has left those before `begin`. */
struct smc_kv_span {
  int32_t begin, end;
};

struct smc_kv_group {
  const struct smc_kv_shape *shape;
  int32_t window; /* 0: all pages of a context are kept */
  uint8_t *data;  /* page p at data + p * page_bytes; memory of the device */
  uint64_t page_bytes;
  int32_t most_pages;                    /* that a sequence can hold */
  int32_t page_count;                    /* for all sequences: always enough */
  int32_t fresh, free_count, pages_used; /* pages from `fresh` on were never used */
  int32_t *free_pages, *references;      /* [page_count] */
  int32_t *tables;                       /* [sequence_count][table_pages] */
  struct smc_kv_span *spans;             /* [sequence_count] */
};

struct smc_kv_cache {
  struct smc_kv_group groups[SMC_MAX_KV_GROUPS];
  int32_t group_count, sequence_count, table_pages;
  int32_t context_length, kv_dtype;
  struct smc_sequence *sequences;
  struct smc_past_token *past; /* [sequence_count][context_length], or NULL where no group has a window */
  const struct smc_program *program;
  struct smc_device *device;
};

int smc_kv_open(struct smc_kv_cache *cache, const struct smc_program *program, struct smc_device *device,
                int32_t context_length, int32_t sequences, int32_t kv_dtype, char *error);
void smc_kv_close(struct smc_kv_cache *cache);
static inline uint64_t smc_kv_element_bytes(int32_t kv_dtype) {
  return kv_dtype == SMC_KV_F16 ? 2 : kv_dtype == SMC_KV_F32 ? 4 : 1;
}
/* Bytes of so many numbers of K and V, in whole heads of tokens, with their scales if there are any. */
static inline uint64_t smc_kv_bytes(int32_t head_dim_padded, int32_t kv_dtype, uint64_t numbers) {
  const uint64_t scales = kv_dtype == SMC_KV_I8 ? numbers / (uint64_t)head_dim_padded : 0;
  return numbers * smc_kv_element_bytes(kv_dtype) + scales * sizeof(float);
}
static inline int32_t smc_kv_pages_for(int32_t tokens) { return (tokens + SMC_PAGE_TOKENS - 1) / SMC_PAGE_TOKENS; }
static inline int32_t *smc_kv_table(const struct smc_kv_cache *cache, const struct smc_kv_group *group,
                                    int32_t sequence) {
  return group->tables + (int64_t)sequence * cache->table_pages;
}
/* Bytes of a token in all groups, and of the pages that are in use now. */
uint64_t smc_kv_bytes_per_token(const struct smc_kv_cache *cache);
uint64_t smc_kv_bytes_used(const struct smc_kv_cache *cache);
int smc_kv_check(const struct smc_kv_cache *cache, int32_t sequence, char *error); /* SMC_OK if it lives */
int smc_kv_create(struct smc_kv_cache *cache, char *error);
int smc_kv_fork(struct smc_kv_cache *cache, int32_t sequence, char *error);
/* Forgets what lies behind `length` tokens, at most all of them; a sequence whose windows then lack K and V is
 * stale. */
void smc_kv_shorten(struct smc_kv_cache *cache, int32_t sequence, int32_t length);
void smc_kv_drop(struct smc_kv_cache *cache, int32_t sequence);
/* SMC_OK where the machine has memory for all pending tokens of all sequences. */
int smc_kv_reserve(struct smc_kv_cache *cache, char *error);
/* Before a step: `first` is the sequence's first token in it. Pages that no window sees any more come free. */
void smc_kv_slide(struct smc_kv_cache *cache, int32_t sequence, int32_t first);
/* Makes the place of a token writable: adds a page, or copies a shared one. Reserved memory is there. */
void smc_kv_extend(struct smc_kv_cache *cache, int32_t sequence, int32_t index);
/* Ends the batch: pending tokens become part of their sequences, or are forgotten. */
void smc_kv_finish(struct smc_kv_cache *cache, int success);
/* SMC_OK where the machine has room for so many more bytes of K and V. */
int smc_kv_check_memory(const struct smc_kv_cache *cache, uint64_t bytes, char *error);
int32_t smc_kv_take_page(struct smc_kv_group *group);

/* ---- kv_save.c: sequences as bytes */

int smc_kv_save(const struct smc_kv_cache *cache, int32_t sequence, void *buffer, uint64_t *size, char *error);
int smc_kv_restore(struct smc_kv_cache *cache, const void *buffer, uint64_t size, char *error);

/* ---- engine.c: a model, all of the above together */

struct smc_model {
  const struct smc_program *program;
  const struct smc_level *level;
  pthread_mutex_t mutex;     /* held by every function but cancel and cancels */
  int32_t process;           /* that opened it */
  int32_t prefetch_distance; /* smc_prefetch_distance */
  atomic_int callers;        /* threads that hold the mutex or wait for it; they leave where … */
  atomic_int closing;        /* … the model is being closed */
  struct smc_artifact artifact;
  struct smc_kv_cache cache;
  struct smc_pool *pool;
  int own_pool;
  struct smc_device *device;
  int32_t workers; /* the number that share the blocks of a phase: threads of the pool, or workers of another device */
  struct smc_profiler profiler;
  _Atomic uint32_t cancels;
  _Atomic uint32_t *cancels_word; /* the same count, where a device sees it during a step; NULL: it needs none */
  uint64_t memory_bytes;          /* of all that steps need */
  /* Memory of the device: the arena, the threads' scratch, partial results of attention. */
  uint8_t *arena, *scratch;
  uint64_t arena_bytes, scratch_stride;
  float *partials;
  int32_t partial_count; /* how many pairs of a token and a split fit */
  /* Memory of the host, one mapping: the tables of a step. */
  uint8_t *tables;
  uint64_t table_bytes;
  int32_t *tokens, *positions, *wanted_tokens, *logits_tokens, *argmax_tokens;
  int32_t *beyond; /* see smc_step */
  int32_t *slots;  /* [kv_group_count][max_step_tokens] */
  struct smc_kv_pages kv[SMC_MAX_KV_GROUPS];
  struct smc_argmax *argmaxes;
  struct smc_tile *tiles, *wanted_tiles;
  float *rope, *bounce; /* bounce: NULL until it is needed */
};

#include "device.h"

/* ---- step.c: a batch as steps; the caller holds the mutex */

/* The activations' memory of a model with a pool and a cache: SMC_OK or SMC_NO_MEMORY. */
int smc_step_allocate(smc_model *model, char *error);
void smc_step_free(smc_model *model);
/* Checks the batch, makes room in the cache and runs: all or nothing. A smc_status. */
int smc_step_batch(smc_model *model, const smc_batch *batch, char *error);

#endif
