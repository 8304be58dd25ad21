/* Text for one prompt, as `smc run` prints it. */
#include "standalone.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double per_second(int32_t tokens, double seconds) { return seconds > 0 ? tokens / seconds : 0; }

static int32_t encode_prompt(const struct smc_session *session, const struct smc_command *command, int32_t **tokens) {
  if (command->raw || !session->chat) return smc_encode_text(session, command->prompt, command->prompt_length, tokens);
  const struct smc_message messages[] = {
      {.role = SMC_ROLE_SYSTEM, .content = command->system, .length = command->system ? strlen(command->system) : 0},
      {.role = SMC_ROLE_USER, .content = command->prompt, .length = command->prompt_length},
  };
  return command->system ? smc_encode_chat(session, messages, 2, tokens)
                         : smc_encode_chat(session, messages + 1, 1, tokens);
}

/* stream: as the last of the events. */
static void print_json(const struct smc_session *session, const struct smc_generation *generation,
                       const int32_t *prompt, int32_t count, int stream) {
  static const char *const reasons[] = {"stop", "length", "interrupted"};
  struct smc_buffer out = {0};
  smc_add_format(&out, stream ? "{\"event\": \"result\", \"text\": " : "{\"text\": ");
  smc_add_json(&out, generation->text.bytes, generation->text.length);
  smc_add_format(&out, ", \"tokens\": [");
  for (int32_t i = 0; i < generation->count; i++) smc_add_format(&out, "%s%d", i ? ", " : "", generation->tokens[i]);
  smc_add_format(&out, "], \"finish_reason\": \"%s\", \"prompt_tokens\": [", reasons[generation->finish]);
  for (int32_t i = 0; i < count; i++) smc_add_format(&out, "%s%d", i ? ", " : "", prompt[i]);
  smc_add_format(&out, "], \"load_seconds\": %.9g, \"prefill\": {\"tokens\": %d, \"tokens_per_s\": %.9g}",
                 session->load_seconds, generation->prompt_tokens,
                 per_second(generation->prompt_tokens, generation->prompt_seconds));
  smc_add_format(&out, ", \"decode\": {\"tokens\": %d, \"tokens_per_s\": %.9g}, \"threads\": %d, \"level\": \"%s\"",
                 generation->decoded_tokens, per_second(generation->decoded_tokens, generation->decode_seconds),
                 session->info.threads, session->info.level);
  if (generation->logprobs) {
    smc_add_format(&out, ", \"logprobs\": [");
    smc_add_logprob_json(&out, session, generation);
    smc_add_format(&out, "]");
  }
  smc_add_format(&out, "}\n");
  smc_print(out.bytes, out.length);
  smc_buffer_free(&out);
}

/* What follows the text where it is no JSON. */
static void print_end(const struct smc_session *session, const struct smc_generation *generation) {
  struct smc_buffer out = {0};
  if (generation->text.length && generation->text.bytes[generation->text.length - 1] != '\n')
    smc_add_format(&out, "\n");
  if (generation->logprobs) smc_add_logprob_lines(&out, session, generation);
  smc_print(out.bytes, out.length);
  smc_buffer_free(&out);
}

void smc_print_stats(const struct smc_session *session, const struct smc_generation *generation) {
  fprintf(stderr,
          "loaded in %.2f s; prompt: %d tokens, %.1f tokens/s; answer: %d tokens, %.1f tokens/s; %d threads, level %s, "
          "peak memory %.0f MiB\n",
          session->load_seconds, generation->prompt_tokens,
          per_second(generation->prompt_tokens, generation->prompt_seconds), generation->count,
          per_second(generation->decoded_tokens, generation->decode_seconds), session->info.threads,
          session->info.level, (double)smc_peak_memory() / (1 << 20));
}

int smc_run(struct smc_session *session, const struct smc_command *command) {
  struct smc_generation generation;
  int32_t *prompt;
  const int32_t count = encode_prompt(session, command, &prompt);
  const enum smc_output output = command->stream ? SMC_OUTPUT_EVENTS
                                 : command->json ? SMC_OUTPUT_NONE
                                                 : SMC_OUTPUT_TEXT;
  smc_generate(session, command, prompt, count, output, &generation);
  if (command->json) print_json(session, &generation, prompt, count, command->stream);
  else print_end(session, &generation);
  if (command->stats) smc_print_stats(session, &generation);
  const int interrupted = generation.finish == SMC_FINISH_INTERRUPTED;
  smc_generation_free(&generation);
  free(prompt);
  return interrupted ? SMC_EXIT_INTERRUPTED : 0;
}
