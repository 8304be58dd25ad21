/* The log-probabilities of chosen tokens and of the likeliest ones, in the model's own distribution: before penalty,
 * temperature and filters. */
#include "standalone.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Writes the `count` largest logits to `top`, largest first, the lower id first among equals. */
static void find_top(const float *logits, int32_t vocab_size, struct smc_logprob *top, int32_t count) {
  int32_t found = 0;
  for (int32_t token = 0; token < vocab_size; token++) {
    int32_t place = found;
    while (place > 0 && (double)logits[token] > top[place - 1].logprob) place--;
    if (place == count) continue;
    if (found < count) found++;
    memmove(top + place + 1, top + place, (size_t)(found - 1 - place) * sizeof *top);
    top[place] = (struct smc_logprob){.token = token, .logprob = (double)logits[token]};
  }
}

void smc_record_logprobs(struct smc_generation *generation, const float *logits, int32_t vocab_size, int32_t token,
                         int32_t top) {
  if (top > vocab_size) top = vocab_size;
  const size_t row = (size_t)top + 1, rows = (size_t)generation->count;
  struct smc_logprob *all = realloc(generation->logprobs, rows * row * sizeof *all);
  if (!all) smc_die_of_memory();
  struct smc_logprob *own = all + (rows - 1) * row;
  generation->logprobs = all, generation->top = top;
  own[0] = (struct smc_logprob){.token = token, .logprob = (double)logits[token]};
  find_top(logits, vocab_size, own + 1, top);
  double largest = -INFINITY, sum = 0;
  for (int32_t i = 0; i < vocab_size; i++) largest = fmax(largest, (double)logits[i]);
  for (int32_t i = 0; i < vocab_size; i++) sum += exp((double)logits[i] - largest);
  for (size_t i = 0; i < row; i++) own[i].logprob = own[i].logprob - largest - log(sum);
}

static void add_text(struct smc_buffer *out, const struct smc_session *session, int32_t token) {
  char reason[SMC_ERROR_BYTES], *text;
  const int64_t length = smc_tokenizer_decode(session->tokenizer, &token, 1, 0, &text, reason);
  if (length < 0) smc_die("%s", reason);
  smc_add_json(out, text, (size_t)length);
  free(text);
}

/* Adds spaces until the text from `begin` on has `width` characters. */
static void pad(struct smc_buffer *out, size_t begin, int width) {
  for (size_t i = begin; i < out->length; i++) width -= (out->bytes[i] & 0xc0) != 0x80;
  while (width-- > 0) smc_buffer_add(out, " ", 1);
}

void smc_add_logprob_lines(struct smc_buffer *out, const struct smc_session *session,
                           const struct smc_generation *generation) {
  for (int32_t i = 0; i < generation->count; i++) {
    const struct smc_logprob *own = generation->logprobs + (int64_t)i * (generation->top + 1);
    smc_add_format(out, "%9.3f  ", own->logprob);
    const size_t begin = out->length;
    add_text(out, session, own->token);
    for (int32_t j = 1; j <= generation->top; j++) {
      if (j == 1) pad(out, begin, 16);
      smc_add_format(out, "  ");
      add_text(out, session, own[j].token);
      smc_add_format(out, " %.3f", own[j].logprob);
    }
    smc_add_format(out, "\n");
  }
}

void smc_add_logprob_json(struct smc_buffer *out, const struct smc_session *session,
                          const struct smc_generation *generation) {
  for (int32_t i = 0; i < generation->count; i++) {
    const struct smc_logprob *own = generation->logprobs + (int64_t)i * (generation->top + 1);
    smc_add_format(out, "%s{\"token\": %d, \"text\": ", i ? ", " : "", own->token);
    add_text(out, session, own->token);
    smc_add_format(out, ", \"logprob\": %.17g, \"top\": [", own->logprob);
    for (int32_t j = 1; j <= generation->top; j++)
      smc_add_format(out, "%s{\"token\": %d, \"logprob\": %.17g}", j > 1 ? ", " : "", own[j].token, own[j].logprob);
    smc_add_format(out, "]}");
  }
}
