/* Between the engine and a generated host program: constants one way, the state of a step the other way.
 *
 * The host program runs on all threads at once as phases. A phase is a list of tasks, each a number of independent
 * blocks; smc_phase_claim hands out blocks, a thread's own share first; smc_phase_end is the barrier.
 *
 *   struct smc_phase phase;
 *   const int32_t blocks[] = {30, 6, 6};
 *   smc_phase_begin(thread, &phase, 7, 3, blocks);   // smc_program.tasks[7], [8] and [9]
 *   while (smc_phase_claim(thread, &phase)) switch (phase.task) {
 *     case 0: kernel(…, phase.begin, phase.end); break;
 *     …
 *   }
 *   if (smc_phase_end(thread, &phase)) return;   // cancelled
 */
#ifndef SMC_PROGRAM_H
#define SMC_PROGRAM_H

#include "engine.h"

#define SMC_MAX_THREADS 64
#define SMC_PAGE_TOKENS 64   /* tokens of a KV page; attention kernels work page by page */
#define SMC_TOKEN_BLOCK 8    /* tokens whose int8 activations may be interleaved; matmuls begin at multiples of it */
#define SMC_SPLIT_TOKENS 256 /* cached tokens per split of attention, which has a softmax of its own */
#define SMC_MAX_KV_GROUPS 8

/* ---- constants that codegen writes */

struct smc_level {
  const char *name;     /* "avx512vnni" */
  const char *features; /* comma-separated LLVM feature names, all of which the CPU must have */
  const void *kernels;  /* the table of this level's kernels; the host program knows its type */
};

/* What a task moves and computes in a step of n tokens: weight_bytes + n * token_bytes + what it reads of the KV cache
 * and of experts, and n * token_macs + … . */
struct smc_work {
  uint64_t weight_bytes; /* read once per step */
  uint64_t token_bytes;  /* activations read and written, and rows of the embedding table */
  uint64_t token_macs;   /* multiply-adds */
  uint64_t cache_reads;  /* elements for every cached token that a tile sees */
  uint64_t cache_macs;   /* multiply-adds for every pair of a token and a cached token that it sees */
  uint64_t chosen_bytes; /* weights of the experts that a token chooses; … */
  uint64_t expert_bytes; /* … of all experts: a step reads no more of them */
};

/* A task as profiles show it, the calls of its function (its layers) together. */
struct smc_task {
  const char *function, *name, *kernel;
  struct smc_work all;    /* of the calls that work on all tokens of a step, … */
  struct smc_work wanted; /* … and of those that work on requested tokens only; in the head, on rows of logits */
  uint64_t cache_writes;  /* elements that a token adds to the KV cache */
  int32_t kv_group;       /* whose K and V it reads or writes */
  int32_t head, integer;  /* whether it works on rows of logits; whether its multiply-adds are of int8 */
};

/* Layers whose K and V have one shape and one window: they share pages. */
struct smc_kv_shape {
  int32_t layers, kv_heads, head_dim_padded; /* padded to a multiple of 16 */
  int32_t window;                            /* how many cached tokens a token sees, itself included; 0: all */
};

/* Rotary angles: position * frequency for each pair of channels; cosines and sines are multiplied by `magnitude`. */
struct smc_rope_table {
  int32_t pairs;
  float magnitude;
  const float *inverse_frequencies; /* [pairs] */
  /* frequencies for a model that is opened with a context of at most so many tokens; 0: there are none */
  int32_t short_context;
  const float *short_frequencies;
};

struct smc_step;
struct smc_thread;

struct smc_program {
  uint32_t abi_version;
  const char *name;
  const char *weights_hash; /* hex SHA-256 of the weights member: the artifact's manifest must name the same */
  int32_t layers, hidden_size, vocab_size, logits_stride, context_length, positions;
  int32_t kv_group_count; /* 0 … SMC_MAX_KV_GROUPS */
  const struct smc_kv_shape *kv_groups;
  int32_t max_step_tokens;
  int32_t finds_argmax;     /* the head can find the largest logits without writing any */
  int32_t rope_table_count; /* 1 for most models */
  const struct smc_rope_table *rope_tables;
  uint64_t weight_bytes, token_weight_bytes;
  uint64_t arena_bytes;          /* activations of max_step_tokens tokens */
  uint64_t thread_scratch_bytes; /* private scratch of every thread */
  uint64_t partial_bytes;        /* bytes of a token's partial result in one split of the cache, at most */
  uint64_t hidden_offset; /* the offset in the arena of the requested tokens' last hidden states after a step, and … */
  uint64_t hidden_stride; /* … the floats from one of them to the next */
  int32_t level_count;
  const struct smc_level *levels; /* best first */
  int32_t task_count;
  const struct smc_task *tasks;
  void (*run)(struct smc_thread *thread, const struct smc_step *step);
};

extern const struct smc_program smc_program;

/* ---- the state of a step: written by the engine, the same for all threads
 *
 * A thread may be late: the scalars of its step stay unchanged until it has left, but memory behind the pointers is
 * valid only inside a block. So the phases and their numbers of blocks may depend on scalars alone. */

#include "step.h"

/* ---- phases */

/* The weights of a task, in bytes of the weights member: what its first block reads, then what the second reads, … */
struct smc_stream {
  uint64_t begin;
  int32_t blocks, block_bytes;
};

struct smc_thread {
  int32_t index, count;
  uint8_t *scratch; /* thread_scratch_bytes, 64-byte aligned */
  struct smc_pool *pool;
  struct smc_thread_profile *profile; /* NULL: off */
  int64_t done;                       /* blocks that all phases up to now have, the barrier's target */
  int64_t claimed[SMC_MAX_THREADS];   /* where every thread's share of the current phase begins, as a running count */
};

struct smc_phase {
  int32_t task, begin, end; /* what smc_phase_claim handed out, … */
  int32_t token, tokens;    /* … for so many tokens from this one on, in a phase that is cut into pieces */
  /* the rest belongs to the engine */
  int32_t first_task, task_count, victim;
  const uint8_t *prefetch, *prefetch_end; /* what a waiting thread prefetches */
  const int32_t *blocks;
  int64_t total, finished; /* blocks of the phase; of these, what this thread ran and has not yet reported */
  int64_t piece_blocks;    /* blocks of a piece */
  int32_t piece_tokens, all_tokens;
};

/* first_task: of the phase's tasks in smc_program.tasks; only profiles look at it. */
void smc_phase_begin(struct smc_thread *thread, struct smc_phase *phase, int32_t first_task, int32_t task_count,
                     const int32_t *blocks);
/* A step of many tokens is cut into pieces, as many as there are threads if each has enough tokens: then a thread works
 * on the same tokens in every phase, and their values are in its own caches. smc_piece_tokens says how many tokens a
 * piece has, a multiple of 8 but for the last, or all of them. smc_phase_pieces declares after smc_phase_begin that the
 * phase's blocks are those of one piece, and the phase has them for each. */
int32_t smc_piece_tokens(const struct smc_thread *thread, int32_t tokens);
void smc_phase_pieces(struct smc_phase *phase, int32_t tokens, int32_t piece_tokens);
/* Declares after smc_phase_begin what the next tasks with weights read: a waiting thread prefetches the beginning of
 * its share of them. Phases between the two may be left out; streams without blocks do not count. */
void smc_phase_prefetch(const struct smc_thread *thread, struct smc_phase *phase, const uint8_t *weights,
                        const struct smc_stream *streams, int32_t count);
/* In a step of one token, inside a block of an earlier phase: prefetches where the thread's share of the KV heads, the
 * first of which is `head` of a page, will have its K and V. They were used a whole step ago, and lie in memory. */
void smc_kv_prefetch(const struct smc_thread *thread, const struct smc_step *step, int32_t group, int64_t head,
                     int32_t kv_heads, int32_t head_dim_padded);
int smc_phase_claim(struct smc_thread *thread, struct smc_phase *phase);
int smc_phase_end(struct smc_thread *thread, struct smc_phase *phase);
int smc_cancelled(const struct smc_thread *thread); /* call once per layer: makes a pending cancel() take effect */

#endif
