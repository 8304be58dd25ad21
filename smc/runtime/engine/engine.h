/* The smc engine: what a program.so exports and how to run it.
 *
 * A program.so holds the engine, the kernels and the host program of one model. It exports one symbol, the function
 * table `smc_engine`. Every function returns 0 (or a count or an id, >= 0) for success and a negative smc_status
 * otherwise; the sentence that explains it is then in `error`, SMC_ERROR_BYTES of the caller's, which may be NULL. So
 * every call has its own sentence, whatever other threads do. Pointers are checked where they cross.
 *
 * A model may be used from several threads: calls are serialized by a mutex. `cancel` and `cancels` run beside them.
 * `close` ends the running step, waits for the calls that have begun, and frees the model: none may begin after it.
 * A forked child has none of the parent's threads: there, every call except `close` fails with a sentence.
 */
#ifndef SMC_ENGINE_H
#define SMC_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#define SMC_ABI_VERSION 8
#define SMC_ERROR_BYTES 512 /* of a sentence, its 0 included */

typedef enum smc_status {
  SMC_OK = 0,
  SMC_BAD_INPUT = -1,   /* the caller's: a token, an option or a file that can't be right */
  SMC_NO_MEMORY = -2,   /* the KV cache or a buffer does not fit */
  SMC_CANCELLED = -3,   /* cancel() or close() was called; the sequences of the batch are as before the step */
  SMC_NO_SPACE = -4,    /* no free sequence slot, or a sequence would outgrow the context */
  SMC_UNSUPPORTED = -5, /* this CPU has none of the artifact's feature levels */
  SMC_FAILED = -6,      /* the operating system refused something */
  SMC_NOT_FINITE = -7,  /* numbers exceed the arithmetic or the KV cache; sequences as for SMC_CANCELLED */
} smc_status;

typedef enum smc_kv_dtype {
  SMC_KV_F16 = 0,
  SMC_KV_F32 = 1,
  SMC_KV_I8 = 2, /* with a scale for every token and KV head */
} smc_kv_dtype;

typedef struct smc_model smc_model;
typedef struct smc_pool smc_pool;

typedef struct smc_options {
  uint32_t size;          /* sizeof(smc_options): lets the struct grow */
  int32_t context_length; /* tokens that a sequence may hold; 0: as the model was trained */
  int32_t sequences;      /* how many sequences exist at once; 0: 1 */
  int32_t kv_dtype;       /* smc_kv_dtype */
  int32_t threads;        /* 0: one per (fast) CPU in the affinity mask and the cgroup quota; ignored with `pool` */
  const char *path;       /* the artifact; mapped once, read-only */
  const char *level;      /* force this feature level (also by $SMC_LEVEL); NULL: the best that the CPU has */
  smc_pool *pool;         /* threads to share with other models of this process; NULL: the model makes its own */
  const void *adapter;    /* reserved for run-time adapters: must be NULL */
  void (*log)(void *user, const char *message); /* may be NULL */
  void *log_user;
} smc_options;

/* Facts of an opened model; all counts are of tokens, elements or bytes as named. */
typedef struct smc_info {
  uint32_t size; /* in: sizeof(smc_info) */
  int32_t layers, vocab_size, hidden_size;
  int32_t logits_stride;  /* floats from one row of logits to the next, >= vocab_size: rows are padded */
  int32_t context_length; /* of this model object */
  int32_t sequences, threads, kv_dtype;
  int32_t max_step_tokens; /* longer batches are run in chunks of this many */
  int32_t finds_argmax;    /* whether tokens may request the id of their largest logit */
  int32_t kv_page_tokens;
  const char *name, *level;    /* level: the feature level in use */
  uint64_t weight_bytes;       /* mapped */
  uint64_t token_weight_bytes; /* weight bytes that one token multiplies: all but the rows of the embedding table */
  uint64_t kv_bytes_per_token; /* of all layers, as long as no window of the model is full */
  uint64_t state_bytes_per_sequence; /* recurrent state; 0: the model has none */
  uint64_t kv_bytes_used;            /* pages in use now */
  uint64_t activation_bytes;         /* arena, thread scratch and tables */
} smc_info;

enum { SMC_WANT_LOGITS = 1, SMC_WANT_HIDDEN = 2, SMC_WANT_ARGMAX = 4 };

/* One token of a batch. Tokens of one sequence must follow each other in the batch, with cache indices that go on
 * where the sequence ends (its length) and rise by one. `position` is the rotary position, usually the index. */
typedef struct smc_token {
  int32_t token, sequence, position, index;
  uint32_t flags; /* SMC_WANT_… */
  int32_t parent; /* 0: the token sees all before it in its sequence. Reserved for trees of drafts: must be 0 */
} smc_token;

typedef struct smc_batch {
  int32_t count;
  const smc_token *tokens; /* [count] */
  float *logits;    /* one row of logits_stride floats for every token that requests logits, in batch order; 64-byte
                       aligned or not; may be NULL where none does */
  float *hidden;    /* one row of hidden_size floats for every token that requests its last hidden state */
  int32_t *argmax;  /* for every token that requests it, and not its logits: the id of the largest logit, the lower one
                       among equals. No logits are written for it; if other tokens of the batch request theirs, the
                       head's weights are read twice */
  uint32_t cancels; /* the value of cancels() when the work of this step began: a cancel() since then ends the step, an
                       earlier one does not */
} smc_batch;

/* The cost of one task of the program (a kernel with its place in the model, in all layers together) since
 * profile_start. Seconds are of all threads together. */
typedef struct smc_profile_task {
  const char *function, *name, *kernel; /* "block", "q_proj", "linear_int4_g32" */
  int32_t integer;                      /* its multiply-adds are of int8, otherwise of float32 */
  uint64_t calls;                       /* phases in which it had blocks */
  uint64_t pieces;                      /* runs of blocks that a thread took at once: calls of the kernel */
  uint64_t bytes;        /* that it must read and write: weights once per step, activations, keys and values */
  uint64_t macs;         /* multiply-adds */
  double kernel_seconds; /* inside the kernel */
  double wait_seconds;   /* from a thread's last block to the end of the barrier; counted for a phase's first task */
} smc_profile_task;

/* threads * seconds = the kernel_seconds and wait_seconds of all tasks + claim_seconds + outside_seconds. */
typedef struct smc_profile {
  uint32_t size; /* in: sizeof(smc_profile) */
  int32_t threads, task_count;
  uint64_t steps, tokens;        /* calls of step() and the tokens in them */
  double seconds;                /* inside step(), by the clock */
  double claim_seconds;          /* handing out blocks, and the host program between phases; of all threads */
  double outside_seconds;        /* outside the host program: checks, tables, waking and idle workers; of all threads */
  const smc_profile_task *tasks; /* [task_count], valid until the next call of a profile_… function or close */
} smc_profile;

/* The limits of this machine with `threads` threads at the model's level; 0: not known. Bytes and multiply-adds
 * per second, the best of several runs. */
typedef struct smc_limits {
  uint32_t size;            /* in: sizeof(smc_limits) */
  int32_t threads;          /* in: 1 … info.threads */
  double memory_bytes;      /* reading a buffer that no cache holds */
  double weights_bytes;     /* reading the model's weights again and again, as decoding does */
  double i8_macs, f32_macs; /* multiply-adds in registers: the level's int8 dot products, float32 */
} smc_limits;

typedef struct smc_engine_api {
  uint32_t abi_version; /* SMC_ABI_VERSION; look at nothing else where it differs from yours */
  uint32_t size;        /* sizeof(smc_engine_api) */

  /* Threads, shared by all models of a process. Workers are the engine's own; the caller's thread works too and its
   * affinity is never touched. threads = 0 as in smc_options, at most 64. A pool may serve the models of any program.so
   * of the same ABI version, but its workers run code of the one that created it: that one must stay loaded, and the
   * pool must outlive its models. */
  int (*pool_create)(int32_t threads, smc_pool **pool);
  void (*pool_destroy)(smc_pool *pool);

  int (*open)(const smc_options *options, smc_model **model, char *error); /* on failure *model is NULL */
  void (*close)(smc_model *model);
  int (*info)(const smc_model *model, smc_info *info, char *error);

  /* Run a batch: prefill, decode and several sequences at once are this one call. */
  int (*step)(smc_model *model, const smc_batch *batch, char *error);
  /* End all work that has begun (see smc_batch.cancels): a running step at its next layer, a later one at once. Safe in
   * a signal handler. */
  void (*cancel)(smc_model *model);
  uint32_t (*cancels)(const smc_model *model); /* how often cancel was called, modulo 2^32 */

  /* Sequences. create and fork return a slot id. fork shares the pages of the past; what is written later is not
   * shared. truncate forgets what lies behind the first `length` tokens. A window of attention keeps 64 tokens more
   * than it needs: where truncate goes further back, the next step of the sequence computes its tokens once more, for
   * the same bits. */
  int (*sequence_create)(smc_model *model, char *error);
  int (*sequence_fork)(smc_model *model, int32_t sequence, char *error);
  int (*sequence_truncate)(smc_model *model, int32_t sequence, int32_t length, char *error);
  int (*sequence_drop)(smc_model *model, int32_t sequence, char *error);
  int (*sequence_length)(const smc_model *model, int32_t sequence, char *error);
  /* The K and V of a sequence as bytes, for a program of the same artifact and KV dtype. save returns SMC_OK and the
   * size needed in *size (nothing is written where buffer is NULL or *size was too small: SMC_BAD_INPUT then). */
  int (*sequence_save)(const smc_model *model, int32_t sequence, void *buffer, uint64_t *size, char *error);
  int (*sequence_restore)(smc_model *model, const void *buffer, uint64_t size, char *error); /* a new slot id */

  /* Profiling changes no result and costs nothing while it is off. start forgets earlier measurements. */
  int (*profile_start)(smc_model *model, char *error);
  int (*profile_stop)(smc_model *model, smc_profile *profile, char *error);
  int (*limits)(smc_model *model, smc_limits *limits, char *error); /* measures for about a second */
} smc_engine_api;

/* The one exported symbol. */
extern const smc_engine_api smc_engine;

#endif
