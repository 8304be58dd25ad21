/* Generating text: tokens one by one, printed as they settle. What ends a text, and what is shown of it, is as in
 * smc/runtime/generation.py and streaming.py. */
#include "standalone.h"

#include <stdlib.h>
#include <string.h>

/* Passes text on until one of the stop texts occurs, and holds back whatever may be the beginning of one. */
struct stops {
  const char **texts;
  int32_t count;
  struct smc_buffer held;
  int stopped;
};

/* How many bytes at the end of `held` are a beginning of `stop`. */
static size_t overlap(const struct smc_buffer *held, const char *stop) {
  const size_t most = strlen(stop) - 1;
  for (size_t length = most < held->length ? most : held->length; length > 0; length--)
    if (!memcmp(held->bytes + held->length - length, stop, length)) return length;
  return 0;
}

/* Adds a text to what is held; returns how many bytes from its beginning may be shown. */
static size_t find_stop(struct stops *stops, const char *text, size_t length) {
  struct smc_buffer *held = &stops->held;
  smc_buffer_add(held, text, length);
  size_t shown = held->length, kept = 0;
  for (int32_t i = 0; i < stops->count; i++) {
    const char *found = memmem(held->bytes, held->length, stops->texts[i], strlen(stops->texts[i]));
    if (found && (size_t)(found - held->bytes) <= shown) shown = (size_t)(found - held->bytes), stops->stopped = 1;
    const size_t more = overlap(held, stops->texts[i]);
    if (more > kept) kept = more;
  }
  return stops->stopped ? shown : held->length - kept;
}

struct writer {
  struct smc_generation *generation;
  struct stops stops;
  enum smc_output output;
};

static void print_event(const char *text, size_t length) {
  struct smc_buffer out = {0};
  smc_add_format(&out, "{\"event\": \"text\", \"text\": ");
  smc_add_json(&out, text, length);
  smc_add_format(&out, "}\n");
  smc_print(out.bytes, out.length);
  smc_buffer_free(&out);
}

static void show(struct writer *writer, size_t length) {
  struct smc_buffer *held = &writer->stops.held;
  if (length == 0) return;
  smc_buffer_add(&writer->generation->text, held->bytes, length);
  if (writer->output == SMC_OUTPUT_TEXT) smc_print(held->bytes, length);
  if (writer->output == SMC_OUTPUT_EVENTS) print_event(held->bytes, length);
  memmove(held->bytes, held->bytes + length, held->length - length + 1);
  held->length -= length;
}

static void push(struct writer *writer, const char *text, size_t length) {
  if (length) show(writer, find_stop(&writer->stops, text, length));
}

static void check_prompt(const struct smc_session *session, const int32_t *prompt, int32_t count) {
  if (count == 0) smc_die("the prompt is empty: give at least one token");
  if (count > session->info.context_length)
    smc_die("the prompt has %d tokens, but the context holds %d; shorten it or choose a longer context (--ctx)", count,
            session->info.context_length);
  /* A tokenizer may have more tokens than the model: what has a place for each of the model's is used from here on. */
  for (int32_t i = 0; i < count; i++)
    if (prompt[i] < 0 || prompt[i] >= session->info.vocab_size)
      smc_die("token %d is not in the vocabulary of %d tokens", prompt[i], session->info.vocab_size);
}

static int ends_text(int32_t token) {
  for (int32_t i = 0; i < smc_facts.eos_count; i++)
    if (smc_facts.eos[i] == token) return 1;
  return 0;
}

/* Runs what the cache does not hold of the prompt. */
static int run_prompt(struct smc_session *session, const int32_t *prompt, int32_t count,
                      struct smc_generation *generation) {
  const int32_t cached = smc_session_keep_common(session, prompt, count - 1);
  const double started = smc_seconds();
  const int status = smc_session_extend(session, prompt + cached, count - cached);
  generation->prompt_tokens = count - cached;
  generation->prompt_seconds = smc_seconds() - started;
  return status;
}

/* Chooses and runs tokens until one ends the text; text goes to the writer. */
static enum smc_finish run_tokens(struct smc_session *session, struct smc_sampler *sampler,
                                  struct smc_detokenizer *detokenizer, struct writer *writer,
                                  const struct smc_command *command) {
  struct smc_generation *generation = writer->generation;
  for (;;) {
    if (session->calls) sampler->allowed = smc_calls_allowed(session->calls);
    const int32_t token = session->takes_largest ? session->largest : smc_sample(sampler, session->logits);
    const char *text;
    size_t length;
    generation->tokens[generation->count++] = token;
    if (command->logprobs >= 0)
      smc_record_logprobs(generation, session->logits, session->info.vocab_size, token, command->logprobs);
    if (ends_text(token)) return SMC_FINISH_STOP;
    if (session->calls && !smc_calls_accept(session->calls, token)) return SMC_FINISH_STOP;
    if (smc_detokenizer_push(detokenizer, token, &text, &length)) smc_die_of_memory();
    push(writer, text, length);
    if (writer->stops.stopped) return SMC_FINISH_STOP;
    if (generation->count == command->max_tokens || session->length == session->info.context_length)
      return SMC_FINISH_LENGTH;
    const double started = smc_seconds();
    if (smc_session_extend(session, &token, 1)) return SMC_FINISH_INTERRUPTED;
    generation->decode_seconds += smc_seconds() - started;
    generation->decoded_tokens++;
  }
}

void smc_generate(struct smc_session *session, const struct smc_command *command, const int32_t *prompt, int32_t count,
                  enum smc_output output, struct smc_generation *generation) {
  check_prompt(session, prompt, count);
  *generation = (struct smc_generation){.finish = SMC_FINISH_LENGTH};
  smc_buffer_add(&generation->text, "", 0);
  if (command->max_tokens == 0) return;
  char reason[SMC_ERROR_BYTES];
  struct writer writer = {
      .generation = generation, .output = output, .stops = {.texts = command->stops, .count = command->stop_count}};
  struct smc_detokenizer *detokenizer;
  struct smc_sampler sampler;
  generation->tokens = malloc((size_t)(session->info.context_length - count + 1) * sizeof *generation->tokens);
  if (!generation->tokens) smc_die_of_memory();
  if (smc_detokenizer_open(&detokenizer, session->tokenizer, prompt, (size_t)count, reason)) smc_die("%s", reason);
  smc_sampler_open(&sampler, &command->sampling, session->info.vocab_size, prompt, count);
  session->takes_largest =
      session->info.finds_argmax && smc_takes_largest(&command->sampling) && command->logprobs < 0 && !session->calls;
  if (session->calls) smc_calls_begin(session->calls);
  generation->finish = run_prompt(session, prompt, count, generation)
                           ? SMC_FINISH_INTERRUPTED
                           : run_tokens(session, &sampler, detokenizer, &writer, command);
  if (!writer.stops.stopped && generation->finish != SMC_FINISH_INTERRUPTED) {
    const char *text;
    size_t length;
    if (smc_detokenizer_flush(detokenizer, &text, &length)) smc_die_of_memory();
    push(&writer, text, length);
    if (writer.stops.stopped) generation->finish = SMC_FINISH_STOP;
    else show(&writer, writer.stops.held.length);
  }
  smc_sampler_close(&sampler);
  smc_detokenizer_close(detokenizer);
  smc_buffer_free(&writer.stops.held);
}

void smc_generation_free(struct smc_generation *generation) {
  smc_buffer_free(&generation->text);
  free(generation->tokens);
  free(generation->logprobs);
  *generation = (struct smc_generation){0};
}
