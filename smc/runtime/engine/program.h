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
#define SMC_PAGE_TOKENS 64 /* tokens of a KV page; attention kernels work page by page */
#define SMC_TOKEN_BLOCK 8  /* tokens whose int8 activations may be interleaved: matmuls begin with the first of so many */
#define SMC_SPLIT_TOKENS 256 /* cached tokens that may be a block of attention: splits have softmaxes of their own */
#define SMC_MAX_KV_GROUPS 8

/* ---- constants that codegen writes */

struct smc_level {
  const char *name;     /* "avx512vnni" */
  const char *features; /* comma-separated LLVM feature names, all of which the CPU must have */
  const void *kernels;  /* the table of this level's kernels; the host program knows its type */
};

/* What a task moves and computes in a step of n tokens: weight_bytes + n * token_bytes + what it reads of the KV cache, and
 * n * token_macs + … . */
struct smc_work {
  uint64_t weight_bytes;   /* read once per step */
  uint64_t token_bytes;    /* activations read and written, and rows of the embedding table */
  uint64_t token_macs;     /* multiply-adds */
  uint64_t cache_reads;    /* elements for every cached token that a tile sees */
  uint64_t cache_macs;     /* multiply-adds for every pair of a token and a cached token that it sees */
};

/* A task as profiles show it, the calls of its function (its layers) together. */
struct smc_task {
  const char *function, *name, *kernel;
  struct smc_work all;     /* of the calls that work on all tokens of a step, … */
  struct smc_work wanted;  /* … and of those that work on the wanted ones only; in the head, on rows of logits */
  uint64_t cache_writes;   /* elements that a token adds to the KV cache */
  int32_t kv_group;        /* whose K and V it reads or writes */
  int32_t head, integer;   /* whether it works on rows of logits; whether its multiply-adds are of int8 */
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
};

struct smc_step;
struct smc_thread;

struct smc_program {
  uint32_t abi_version;
  const char *name;
  const char *weights_hash; /* hex SHA-256 of the weights member: the artifact's manifest must name the same */
  int32_t layers, hidden_size, vocab_size, logits_stride, context_length;
  int32_t kv_group_count;   /* 0 … SMC_MAX_KV_GROUPS */
  const struct smc_kv_shape *kv_groups;
  int32_t max_step_tokens;
  int32_t finds_top;        /* the head can find the largest logits without writing any */
  int32_t rope_table_count; /* 1 for most models */
  const struct smc_rope_table *rope_tables;
  uint64_t weight_bytes, token_weight_bytes;
  uint64_t arena_bytes;          /* activations of max_step_tokens tokens */
  uint64_t thread_scratch_bytes; /* private scratch of every thread */
  uint64_t partial_bytes;        /* what attention leaves of a token in a split of the cache, at most */
  uint64_t hidden_offset;        /* where in the arena the wanted tokens' last hidden states lie after a step, and … */
  uint64_t hidden_stride;        /* … the floats from one of them to the next */
  int32_t level_count;
  const struct smc_level *levels; /* best first */
  int32_t task_count;
  const struct smc_task *tasks;
  void (*run)(struct smc_thread *thread, const struct smc_step *step);
};

extern const struct smc_program smc_program;

/* ---- the state of a step: written by the engine, the same for all threads
 *
 * A thread may be late: the scalars of its step stay as they are until it has left, but what the pointers point to is
 * only sure inside a block. So the phases and their numbers of blocks may depend on scalars alone. */

/* Tokens of one sequence that attention handles together: count <= SMC_TILE_TOKENS. */
#define SMC_TILE_TOKENS 8
struct smc_tile {
  int32_t token;  /* first token of the tile, an index into the step */
  int32_t count;
  int32_t table;  /* where the sequence's block table begins in the tables of each group */
  int32_t index;  /* cache index of the first token; the tile sees all indices up to each token's own */
};

/* The largest logits of a token among those whose id is a lane's number modulo 16; the lower id among equals. */
#define SMC_TOP_LANES 16
struct smc_top {
  float logits[SMC_TOP_LANES]; /* -infinity: none */
  int32_t ids[SMC_TOP_LANES];
};

/* The pages of a group of layers: page p begins at data + p * page_bytes. In it, for every layer of the group and KV head:
 * K [SMC_PAGE_TOKENS / 16][head_dim_padded][16 tokens], then V [SMC_PAGE_TOKENS][head_dim_padded], then for SMC_KV_I8
 * the float scales of K [SMC_PAGE_TOKENS] and of V [SMC_PAGE_TOKENS]. */
struct smc_kv_pages {
  uint8_t *data;
  uint64_t page_bytes;
  const int32_t *tables; /* block tables: page of every SMC_PAGE_TOKENS tokens of a sequence, in a window all that is sure */
  const int32_t *slots;  /* [count] page * SMC_PAGE_TOKENS + place in the page, where K and V of the step are written */
};

struct smc_step {
  int32_t count;                 /* tokens, 1 … max_step_tokens */
  int32_t kv_dtype;              /* smc_kv_dtype */
  const int32_t *tokens;         /* [count] ids, checked */
  const float *rope;             /* for each table [count][2][pairs]: cosines, then sines */
  int32_t tile_count;
  const struct smc_tile *tiles;
  const struct smc_kv_pages *kv; /* [kv_group_count] */
  int32_t alone;                 /* every tile is the only one of its sequence: it reads no K and V of another's */
  int32_t splits;                /* into how many blocks attention cuts what a tile sees; 1: it does all in one block */
  float *partials;               /* [count][splits], of partial_bytes: where a token's splits wait to be merged */
  int32_t wanted_count;
  const int32_t *wanted_tokens;  /* [wanted_count] of which tokens of the step something is asked: the others end with their K
                                    and V of the last layer, and the last block leaves the rows of these, one after the other */
  int32_t wanted_tile_count;
  const struct smc_tile *wanted_tiles; /* the tiles that have any; all where a tile may write what it reads (alone, one split) */
  int32_t wanted_begin, wanted_end;    /* the tokens from the first to the last of these tiles, in whole blocks of 8 */
  int32_t logits_count;
  const int32_t *logits_tokens;  /* [logits_count] which of the wanted tokens want logits */
  float *logits;                 /* [logits_count][logits_stride], 64-byte aligned */
  int32_t top_count;
  const int32_t *top_tokens;     /* [top_count] which of the wanted tokens want the id of their largest logit only */
  struct smc_top *tops;          /* [threads][top_count] what every thread has found, at the step's begin nothing */
  const uint8_t *weights;        /* the weights member, 64-KiB aligned */
  uint8_t *arena;                /* 64-byte aligned */
  int32_t *beyond;               /* becomes 1 where a key or a value is beyond the cache's range; at the step's begin 0 */
  const void *kernels;           /* of the level in use */
};

/* ---- phases */

/* The weights of a task, in bytes of the weights member: what its first block reads, then what the second one reads, … */
struct smc_stream {
  uint64_t begin;
  int32_t blocks, block_bytes;
};

struct smc_thread {
  int32_t index, count;
  uint8_t *scratch;                /* thread_scratch_bytes, 64-byte aligned */
  struct smc_pool *pool;
  struct smc_thread_profile *profile; /* NULL: off */
  int64_t done;                    /* blocks that all phases up to now have, the barrier's target */
  int64_t claimed[SMC_MAX_THREADS]; /* where every thread's share of the current phase begins, as a running count */
};

struct smc_phase {
  int32_t task, begin, end; /* what smc_phase_claim handed out, … */
  int32_t token, tokens;    /* … for so many tokens from this one on, in a phase that is cut into pieces */
  /* the rest belongs to the engine */
  int32_t first_task, task_count, victim;
  const uint8_t *ahead, *ahead_end; /* what a waiting thread prefetches */
  const int32_t *blocks;
  int64_t total, finished; /* blocks of the phase; of these, what this thread ran and has not yet reported */
  int64_t piece_blocks;    /* blocks of a piece */
  int32_t piece_tokens, all_tokens;
};

/* first_task: of the phase's tasks in smc_program.tasks; only profiles look at it. */
void smc_phase_begin(struct smc_thread *thread, struct smc_phase *phase, int32_t first_task, int32_t task_count,
                     const int32_t *blocks);
/* A step of many tokens is cut into pieces, as many as there are threads if each has enough tokens: then a thread works on the
 * same tokens in every phase, and finds what it made of them in its own caches. smc_piece_tokens says how many tokens a piece
 * has, a multiple of 8 but for the last, or all of them. smc_phase_pieces declares after smc_phase_begin that the phase's blocks
 * are those of one piece, and the phase has them for each. */
int32_t smc_piece_tokens(const struct smc_thread *thread, int32_t tokens);
void smc_phase_pieces(struct smc_phase *phase, int32_t tokens, int32_t piece_tokens);
/* Declares after smc_phase_begin what the next tasks with weights read: a thread that waits for the others prefetches the
 * beginning of its share there. Phases between the two may be left out; streams without blocks count for nothing. */
void smc_phase_ahead(const struct smc_thread *thread, struct smc_phase *phase, const uint8_t *weights,
                     const struct smc_stream *streams, int32_t count);
/* In a step of one token, inside a block of an earlier phase: prefetches where the thread's share of the KV heads, the first
 * of which is `head` of a page, will have its K and V. They were used a whole step ago, and lie in memory. */
void smc_kv_prefetch(const struct smc_thread *thread, const struct smc_step *step, int32_t group, int64_t head, int32_t kv_heads,
                     int32_t head_dim_padded);
int smc_phase_claim(struct smc_thread *thread, struct smc_phase *phase);
int smc_phase_end(struct smc_thread *thread, struct smc_phase *phase);
int smc_cancelled(const struct smc_thread *thread); /* call once per layer: makes a pending cancel() take effect */

#endif
