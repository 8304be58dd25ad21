/* The opened model: this program's own file, the tokenizer and the template in it, and one sequence in the KV cache. */
#include "standalone.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

double smc_seconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

uint64_t smc_peak_memory(void) {
  unsigned long long kibibytes = 0;
  FILE *file = fopen("/proc/self/status", "re");
  char line[256];
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "VmHWM: %llu kB", &kibibytes) == 1) break;
  if (file) fclose(file);
  struct rusage usage;
  if (kibibytes == 0 && getrusage(RUSAGE_SELF, &usage) == 0) kibibytes = (unsigned long long)usage.ru_maxrss;
  return kibibytes * 1024;
}

/* ---- opening */

/* Where this program's file can be opened, even when it was renamed or deleted since; without /proc by the name that it
 * was started by. */
const char *smc_own_path(void) {
  static const char link[] = "/proc/self/exe";
  if (access(link, R_OK) == 0) return link;
  const char *name = (const char *)(uintptr_t)getauxval(AT_EXECFN);
  if (!name) smc_die("this program can't find its own file: there is neither /proc nor AT_EXECFN");
  return name;
}

/* A member of this program's own file. */
static const void *member(const struct smc_session *session, const char *name, uint64_t *length) {
  char reason[SMC_ERROR_BYTES];
  struct smc_member found;
  if (smc_zip_find(session->file.data, session->file.size, name, &found, reason))
    smc_die("this program's file is damaged: %s; copy or compile it again", reason);
  /* The engine checks the weights as it reads them. */
  if (strcmp(name, "weights") && smc_crc32(0, session->file.data + found.offset, found.length) != found.crc)
    smc_die("this program's file is damaged: its checksum does not fit %s; copy or compile it again", name);
  *length = found.length;
  return session->file.data + found.offset;
}

static void open_model(struct smc_session *session, const struct smc_command *command, const char *path) {
  char reason[SMC_ERROR_BYTES];
  const smc_options options = {.size = sizeof options,
                               .context_length = command->context_length,
                               .kv_dtype = command->kv_dtype,
                               .threads = command->threads,
                               .path = path,
                               .level = command->level};
  if (smc_engine.open(&options, &session->model, reason)) smc_die("%s", reason);
  session->info.size = sizeof session->info;
  if (smc_engine.info(session->model, &session->info, reason)) smc_die("%s", reason);
  if (session->info.context_length > smc_program.context_length && !command->quiet)
    fprintf(stderr,
            "note: a context of %d tokens is longer than the %d that the model was trained for: text after these "
            "may make no sense\n",
            session->info.context_length, smc_program.context_length);
  session->sequence = smc_engine.sequence_create(session->model, reason);
  session->tokens = malloc((size_t)session->info.context_length * sizeof *session->tokens);
  void *logits = NULL; /* aligned: the engine then writes to it without a copy */
  if (posix_memalign(&logits, 64, (size_t)session->info.logits_stride * sizeof(float)) || !session->tokens ||
      session->sequence < 0)
    smc_die_of_memory();
  session->logits = logits;
}

void smc_session_open(struct smc_session *session, const struct smc_command *command) {
  char reason[SMC_ERROR_BYTES];
  uint64_t length;
  const double started = smc_seconds();
  const char *path = smc_own_path();
  *session = (struct smc_session){0};
  if (smc_artifact_map(&session->file, path, reason)) smc_die("%s", reason);
  member(session, "weights", &length);
  const void *tables = member(session, "tokenizer.tables", &length);
  if (smc_tokenizer_open(&session->tokenizer, tables, length, reason))
    smc_die("this program's file is damaged: %s; copy or compile it again", reason);
  if (smc_facts.has_template && !smc_facts.no_chat) {
    const void *pieces = member(session, "chat_template.pieces", &length);
    if (smc_chat_template_open(&session->chat, pieces, length, reason))
      smc_die("this program's file is damaged: %s; copy or compile it again", reason);
  }
  open_model(session, command, path);
  if (smc_facts.calls && !command->raw && command->mode != SMC_MODE_BENCH) {
    const void *functions = member(session, "functions.tables", &length);
    if (smc_calls_open(&session->calls, functions, length, session->info.vocab_size, reason))
      smc_die("this program's file is damaged: %s; copy or compile it again", reason);
  }
  session->load_seconds = smc_seconds() - started;
}

void smc_session_close(struct smc_session *session) {
  smc_engine.close(session->model);
  smc_chat_template_close(session->chat);
  smc_calls_close(session->calls);
  smc_tokenizer_close(session->tokenizer);
  smc_artifact_close(&session->file);
  free(session->tokens);
  free(session->logits);
  *session = (struct smc_session){0};
}

/* ---- the sequence */

int smc_session_extend(struct smc_session *session, const int32_t *tokens, int32_t count) {
  char reason[SMC_ERROR_BYTES];
  smc_token *batch = calloc((size_t)count, sizeof *batch);
  if (!batch) smc_die_of_memory();
  for (int32_t i = 0; i < count; i++)
    batch[i] = (smc_token){.token = tokens[i],
                           .sequence = session->sequence,
                           .position = session->length + i,
                           .index = session->length + i,
                           .flags = i + 1 < count            ? 0
                                    : session->takes_largest ? SMC_WANT_ARGMAX
                                                             : SMC_WANT_LOGITS};
  /* Counted before the question whether there was a Ctrl-C: one that comes between the two ends the step. */
  const smc_batch step = {.count = count,
                          .tokens = batch,
                          .logits = session->logits,
                          .argmax = &session->largest,
                          .cancels = smc_engine.cancels(session->model)};
  const int status = smc_interrupted ? SMC_CANCELLED : smc_engine.step(session->model, &step, reason);
  free(batch);
  if (status == SMC_CANCELLED) return status;
  if (status) smc_die("%s", reason);
  memcpy(session->tokens + session->length, tokens, (size_t)count * sizeof *tokens);
  session->length += count;
  return SMC_OK;
}

void smc_session_truncate(struct smc_session *session, int32_t length) {
  char reason[SMC_ERROR_BYTES];
  if (length == session->length) return;
  if (smc_engine.sequence_truncate(session->model, session->sequence, length, reason)) smc_die("%s", reason);
  session->length = length;
}

int32_t smc_session_keep_common(struct smc_session *session, const int32_t *tokens, int32_t count) {
  int32_t common = 0;
  while (common < count && common < session->length && tokens[common] == session->tokens[common]) common++;
  smc_session_truncate(session, common);
  return common;
}

/* ---- prompts */

static int32_t encode(const struct smc_session *session, const struct smc_text *texts, size_t count, int add_special,
                      int32_t **tokens) {
  char reason[SMC_ERROR_BYTES];
  const int64_t length = smc_tokenizer_encode(session->tokenizer, texts, count, add_special, tokens, reason);
  if (length < 0) smc_die("%s", reason);
  if (length > INT32_MAX) smc_die("the prompt has %lld tokens: that is more than any context holds", (long long)length);
  return (int32_t)length;
}

int32_t smc_encode_text(const struct smc_session *session, const char *text, size_t length, int32_t **tokens) {
  return encode(session, &(struct smc_text){.bytes = text, .length = length, .author = SMC_BY_TEMPLATE}, 1, 1, tokens);
}

int32_t smc_encode_chat(const struct smc_session *session, const struct smc_message *messages, int32_t count,
                        int32_t **tokens) {
  char reason[SMC_ERROR_BYTES];
  struct smc_text *texts;
  const int64_t pieces = smc_chat_template_render(session->chat, messages, (size_t)count, &texts, reason);
  if (pieces < 0) smc_die("%s", reason);
  const int32_t length = encode(session, texts, (size_t)pieces, 0, tokens);
  free(texts);
  return length;
}
