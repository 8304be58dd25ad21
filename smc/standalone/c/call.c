/* Queries that are answered with calls of functions, as `smc run --functions` prints them. */
#include "standalone.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_TOKENS = 256 }; /* of an answer, where the command line does not say it */

static int32_t encode_query(const struct smc_session *session, const struct smc_command *command, const char *query,
                            size_t length, int32_t **tokens) {
  if (smc_facts.calls == SMC_CALLS_BY_TEMPLATE) {
    const struct smc_message messages[] = {
        {.role = SMC_ROLE_SYSTEM, .content = command->system, .length = command->system ? strlen(command->system) : 0},
        {.role = SMC_ROLE_USER, .content = query, .length = length},
    };
    return smc_encode_chat(session, messages + !command->system, 1 + !!command->system, tokens);
  }
  struct smc_text texts[3] = {[1] = {.bytes = query, .length = length, .author = SMC_BY_USER}};
  char reason[SMC_ERROR_BYTES];
  smc_calls_prompt(session->calls, texts);
  const int64_t count = smc_tokenizer_encode(session->tokenizer, texts, 3, 1, tokens, reason);
  if (count < 0) smc_die("%s", reason);
  if (count > INT32_MAX) smc_die("the prompt has %lld tokens: that is more than any context holds", (long long)count);
  return (int32_t)count;
}

static void print_answer(const struct smc_session *session, const struct smc_command *command,
                         const struct smc_generation *generation, double seconds) {
  char reason[SMC_ERROR_BYTES], *text;
  struct smc_buffer out = {0};
  const int64_t length =
      smc_tokenizer_decode(session->tokenizer, generation->tokens, (size_t)generation->count, 0, &text, reason);
  if (length < 0) smc_die("%s", reason);
  if (command->json) smc_add_format(&out, "{\"text\": \"\", \"calls\": [");
  if (!smc_add_calls(&out, session->calls, text, (size_t)length, command->json ? ", " : "\n"))
    smc_die("the answer is not a call of a function: '%.200s'", text);
  if (command->json) smc_add_format(&out, "], \"seconds\": %.9g}", seconds);
  smc_add_format(&out, "\n");
  smc_print(out.bytes, out.length);
  smc_buffer_free(&out);
  free(text);
}

int smc_answer_with_calls(struct smc_session *session, const struct smc_command *command, const char *query,
                          size_t length) {
  struct smc_command bounded = *command;
  struct smc_generation generation;
  int32_t *prompt;
  const double started = smc_seconds();
  const int32_t count = encode_query(session, command, query, length, &prompt);
  if (bounded.max_tokens < 0) bounded.max_tokens = MOST_TOKENS;
  bounded.logprobs = -1;
  smc_generate(session, &bounded, prompt, count, SMC_OUTPUT_NONE, &generation);
  const int interrupted = generation.finish == SMC_FINISH_INTERRUPTED;
  if (generation.finish == SMC_FINISH_LENGTH)
    smc_die("the call is longer than %d tokens: allow more (-n, --ctx)", generation.count);
  if (!interrupted) print_answer(session, command, &generation, smc_seconds() - started);
  if (command->stats) smc_print_stats(session, &generation);
  smc_generation_free(&generation);
  free(prompt);
  return interrupted;
}

int smc_call(struct smc_session *session, const struct smc_command *command) {
  return smc_answer_with_calls(session, command, command->prompt, command->prompt_length) ? SMC_EXIT_INTERRUPTED : 0;
}
