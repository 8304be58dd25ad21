/* What the files of a standalone executable know of each other.
 *
 * An executable is this folder, the engine, the kernels and the host program of one model, linked statically, in front
 * of the model's artifact: one file, which finds its weights and its tokenizer in itself (docs/artifact.md). It does
 * what `smc run`, `smc chat` and `smc bench` do, by the same options, defaults and sentences.
 *
 * What the user or the machine did wrong ends the program by smc_die: one sentence, exit status 2. So functions here
 * return only what went well, but for memory that runs out and a Ctrl-C.
 */
#ifndef SMC_STANDALONE_H
#define SMC_STANDALONE_H

#include "internal.h"

#include <signal.h>

#include "chat_template.h"
#include "tokenizer.h"

enum { SMC_EXIT_INPUT = 2, SMC_EXIT_INTERRUPTED = 130 };

/* ---- constants that codegen writes (smc/codegen/standalone.py) */

/* How a token is chosen: the fields of smc/runtime/sampling.py's SamplingOptions. */
struct smc_sampling {
  double temperature, top_p, min_p, repetition_penalty;
  int64_t top_k;
  uint64_t seed;
};

/* How an executable calls the functions that were compiled into it (--functions). */
enum smc_call_form { SMC_CALLS_NONE, SMC_CALLS_BY_TOKENS, SMC_CALLS_BY_TEMPLATE };

struct smc_facts {
  const char *smc_version, *architecture, *target;
  const char *provenance; /* a line for the source and for every pass that ran */
  int32_t has_template;   /* whether the model has a chat template … */
  const char *no_chat;    /* … and why it can't be used here, the end of a sentence; NULL where it can */
  int32_t calls;          /* an smc_call_form: what its answers are */
  uint64_t parameters;
  double bits_per_weight;
  struct smc_sampling sampling; /* the checkpoint's defaults; the seed is the user's */
  int32_t eos_count;
  const int32_t *eos; /* the tokens that end a text */
};

extern const struct smc_facts smc_facts;

/* ---- main.c */

/* Prints "error: " and the sentence, and exits with SMC_EXIT_INPUT. */
_Noreturn void smc_die(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void smc_die_of_memory(void);
/* Set by SIGINT, which also cancels the step that runs. */
extern volatile sig_atomic_t smc_interrupted;

/* ---- options.c: the command line */

enum smc_mode { SMC_MODE_RUN, SMC_MODE_CHAT, SMC_MODE_BENCH, SMC_MODE_INFO, SMC_MODE_VERIFY };

struct smc_command {
  enum smc_mode mode;
  const char *prompt; /* of SMC_MODE_RUN: UTF-8, not terminated */
  size_t prompt_length;
  char *input;        /* where it was read into, or NULL: to be freed at the end */
  const char *system; /* may be NULL */
  int raw, json, stream, stats;
  int quiet, verbose; /* no notes and no progress; more notes */
  int32_t logprobs;   /* how many of the likeliest tokens to report; -1: no log-probabilities */
  struct smc_sampling sampling;
  int32_t max_tokens; /* -1: until the context is full */
  const char **stops; /* [stop_count] */
  int32_t stop_count;
  int32_t context_length, threads, kv_dtype; /* as in smc_options; its names are smc_kv_names */
  const char *level;
  int32_t prompt_tokens, decode_tokens, depth, repeat; /* of --bench */
};

extern const char *const smc_kv_names[]; /* of every smc_kv_dtype */

/* Reads the prompt too, where it comes from standard input. Exits by itself for --help and --version. */
struct smc_command smc_parse_command(int count, char **arguments);

/* ---- text.c: bytes that grow, input and output */

struct smc_buffer {
  char *bytes; /* ends with a 0 that does not count, unless it is NULL */
  size_t length, capacity;
};

void smc_buffer_add(struct smc_buffer *buffer, const char *bytes, size_t length);
void smc_buffer_free(struct smc_buffer *buffer);
/* Dies unless `bytes` are UTF-8; `what` names them: "the prompt". */
void smc_check_utf8(const char *what, const char *bytes, size_t length);
/* All of standard input; a line break at the end is the shell's. Waiting for long is explained, unless `quiet`. A
 * stream that nobody can read, such as nohup's, is as good as an empty one where the text `can_be_none`. */
void smc_read_input(struct smc_buffer *buffer, int can_be_none, int quiet);
/* Writes to standard output at once. */
void smc_print(const char *bytes, size_t length);
/* Writes a JSON string with its quotes to the buffer. */
void smc_add_json(struct smc_buffer *buffer, const char *bytes, size_t length);
void smc_add_json_text(struct smc_buffer *buffer, const char *text);
void smc_add_format(struct smc_buffer *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- sampling.c */

struct smc_sampler {
  struct smc_sampling options;
  const uint8_t *allowed; /* [vocab_size] by token whether it may be chosen; NULL: all may */
  uint64_t state;
  int32_t vocab_size;
  uint8_t *seen;            /* [vocab_size] whether the prompt or the text has the token */
  double *scaled, *ordered; /* [vocab_size] */
};

/* The next 64 bits of SplitMix64. */
uint64_t smc_random(uint64_t *state);
void smc_sampler_open(struct smc_sampler *sampler, const struct smc_sampling *options, int32_t vocab_size,
                      const int32_t *prompt, int32_t count);
void smc_sampler_close(struct smc_sampler *sampler);
/* Whether smc_sample always takes the largest logit, so that no others are needed. */
int smc_takes_largest(const struct smc_sampling *options);
/* The next token for logits [vocab_size]; dies where one is NaN or infinite. */
int32_t smc_sample(struct smc_sampler *sampler, const float *logits);

/* ---- session.c: the opened model and its one sequence */

struct smc_session {
  smc_model *model;
  smc_info info;
  struct smc_artifact file; /* this program's own: the tables of the tokenizer and the template lie in it */
  struct smc_tokenizer *tokenizer;
  struct smc_chat_template *chat; /* NULL where there is none */
  struct smc_calls *calls;        /* what answers must be, or NULL: any text */
  int32_t sequence, length;       /* tokens that the cache holds … */
  int32_t *tokens;                /* … and which: [context_length] */
  float *logits;                  /* [logits_stride] of the last token, unless … */
  int takes_largest;              /* … only its largest one is wanted, … */
  int32_t largest;                /* … whose id this is */
  double load_seconds;
};

double smc_seconds(void);
uint64_t smc_peak_memory(void);
const char *smc_own_path(void); /* of this program's file */
void smc_session_open(struct smc_session *session, const struct smc_command *command);
void smc_session_close(struct smc_session *session);
/* Runs tokens behind those that the cache holds; the last one's logits are in session->logits, or the largest one's id
 * in session->largest. SMC_OK or SMC_CANCELLED. */
int smc_session_extend(struct smc_session *session, const int32_t *tokens, int32_t count);
void smc_session_truncate(struct smc_session *session, int32_t length);
/* Truncates to what the cache has in common with the tokens' beginning; returns its length. */
int32_t smc_session_keep_common(struct smc_session *session, const int32_t *tokens, int32_t count);
/* A prompt's tokens, for the caller to free: plain text, or a conversation. */
int32_t smc_encode_text(const struct smc_session *session, const char *text, size_t length, int32_t **tokens);
int32_t smc_encode_chat(const struct smc_session *session, const struct smc_message *messages, int32_t count,
                        int32_t **tokens);

/* ---- calls.c: which tokens may come next in a call of a function */

/* Checks the tables (smc/standalone/call_tables.py), which are not trusted and stay where they are until close. */
int smc_calls_open(struct smc_calls **calls, const void *tables, size_t size, int32_t vocab_size, char *error);
void smc_calls_close(struct smc_calls *calls);
/* Before the first token. */
void smc_calls_begin(struct smc_calls *calls);
/* [vocab_size] by token whether it may come next: valid until the next call. */
const uint8_t *smc_calls_allowed(struct smc_calls *calls);
/* After a token that was allowed; 0 where nothing can follow it. */
int smc_calls_accept(struct smc_calls *calls, int32_t token);
/* The texts around a query, of calls by tokens; query is put between them. texts: [3]. */
void smc_calls_prompt(const struct smc_calls *calls, struct smc_text *texts);

/* ---- calls_json.c */

/* Adds the calls in a whole answer as JSON objects, each followed by `separator` but the last; 0 where it is none. */
int smc_add_calls(struct smc_buffer *out, const struct smc_calls *calls, const char *text, size_t length,
                  const char *separator);

/* ---- generate.c */

enum smc_finish { SMC_FINISH_STOP, SMC_FINISH_LENGTH, SMC_FINISH_INTERRUPTED };

struct smc_logprob {
  int32_t token;
  double logprob;
};

struct smc_generation {
  struct smc_buffer text;
  int32_t *tokens, count;       /* chosen ones, an end-of-sequence token included */
  struct smc_logprob *logprobs; /* [count][1 + top]: of the chosen token, then of the likeliest; NULL: not requested */
  int32_t top;
  enum smc_finish finish;
  int32_t prompt_tokens, decoded_tokens; /* that were run: the prompt's in one go, the others one by one */
  double prompt_seconds, decode_seconds;
};

/* What is printed as text comes: the text, nothing, or a line of JSON for every piece. */
enum smc_output { SMC_OUTPUT_TEXT, SMC_OUTPUT_NONE, SMC_OUTPUT_EVENTS };

/* Generates until the model, a stop text, a limit or Ctrl-C ends it. */
void smc_generate(struct smc_session *session, const struct smc_command *command, const int32_t *prompt, int32_t count,
                  enum smc_output output, struct smc_generation *generation);
void smc_generation_free(struct smc_generation *generation);

/* ---- logprobs.c */

/* Of the token that was chosen last. logits: [vocab_size]. */
void smc_record_logprobs(struct smc_generation *generation, const float *logits, int32_t vocab_size, int32_t token,
                         int32_t top);
void smc_add_logprob_lines(struct smc_buffer *out, const struct smc_session *session,
                           const struct smc_generation *generation);
/* The elements of a JSON list. */
void smc_add_logprob_json(struct smc_buffer *out, const struct smc_session *session,
                          const struct smc_generation *generation);

/* ---- the commands, one file each; they return the exit status */

int smc_run(struct smc_session *session, const struct smc_command *command);
void smc_print_stats(const struct smc_session *session, const struct smc_generation *generation);
int smc_call(struct smc_session *session, const struct smc_command *command); /* call.c: smc_run with functions */
/* Answers one query with calls and prints them; 0, or whether Ctrl-C ended it. */
int smc_answer_with_calls(struct smc_session *session, const struct smc_command *command, const char *query,
                          size_t length);
int smc_chat(struct smc_session *session, const struct smc_command *command);
int smc_bench(struct smc_session *session, const struct smc_command *command);
int smc_print_info(struct smc_session *session, const struct smc_command *command);
int smc_verify(const struct smc_command *command); /* without a session: what is opened there may be damaged */

#endif
