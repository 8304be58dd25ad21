/* Runs batches on the engine, host program and kernels that it is linked with: under an emulator, for proofs and tests.
 *
 *   driver ARTIFACT THREADS KV_DTYPE SEQUENCES [LEVEL [CONTEXT]]
 *
 * Writes a header, then for every batch on stdin (its count, then its tokens) what its tokens request: logits, then
 * hidden states, then ids of largest logits. A failure is a sentence on stderr and status 2. */
#include "engine.h"

#include <stdio.h>
#include <stdlib.h>

static int fail(const char *sentence) {
  fprintf(stderr, "%s\n", sentence);
  return 2;
}

int main(int count, char **arguments) {
  if (count < 5) return fail("usage: driver ARTIFACT THREADS KV_DTYPE SEQUENCES [LEVEL [CONTEXT]]");
  const smc_options options = {.size = sizeof options,
                               .path = arguments[1],
                               .threads = atoi(arguments[2]),
                               .kv_dtype = atoi(arguments[3]),
                               .sequences = atoi(arguments[4]),
                               .context_length = count > 6 ? atoi(arguments[6]) : 0,
                               .level = count > 5 ? arguments[5] : NULL};
  char error[SMC_ERROR_BYTES];
  smc_model *model;
  if (smc_engine.open(&options, &model, error)) return fail(error);
  smc_info info = {.size = sizeof info};
  if (smc_engine.info(model, &info, error)) return fail(error);
  for (int i = 0; i < options.sequences; i++)
    if (smc_engine.sequence_create(model, error) != i) return fail(error);
  struct {
    char level[32];
    int32_t vocab_size, hidden_size, threads;
  } header = {.vocab_size = info.vocab_size, .hidden_size = info.hidden_size, .threads = info.threads};
  snprintf(header.level, sizeof header.level, "%s", info.level);
  fwrite(&header, sizeof header, 1, stdout);
  fflush(stdout);
  int32_t length;
  while (fread(&length, sizeof length, 1, stdin) == 1) {
    smc_token *tokens = calloc((size_t)length, sizeof *tokens);
    if (!tokens || fread(tokens, sizeof *tokens, (size_t)length, stdin) != (size_t)length)
      return fail("the batch is incomplete");
    size_t rows = 0, states = 0, argmaxes = 0;
    for (int32_t i = 0; i < length; i++) {
      rows += (tokens[i].flags & SMC_WANT_LOGITS) != 0;
      states += (tokens[i].flags & SMC_WANT_HIDDEN) != 0;
      argmaxes += (tokens[i].flags & SMC_WANT_ARGMAX) != 0;
    }
    /* Aligned, as in smc's own callers: else a step would take at most 32 tokens that request logits. */
    float *logits = aligned_alloc(64, (rows + 1) * (size_t)info.logits_stride * sizeof *logits);
    float *hidden = calloc(states + 1, (size_t)info.hidden_size * sizeof *hidden);
    int32_t *argmax = calloc(argmaxes + 1, sizeof *argmax);
    if (!logits || !hidden || !argmax) return fail("can't allocate the results");
    const smc_batch batch = {.count = length, .tokens = tokens, .logits = logits, .hidden = hidden, .argmax = argmax};
    if (smc_engine.step(model, &batch, error)) return fail(error);
    for (size_t row = 0; row < rows; row++)
      fwrite(logits + row * (size_t)info.logits_stride, sizeof *logits, (size_t)info.vocab_size, stdout);
    fwrite(hidden, (size_t)info.hidden_size * sizeof *hidden, states, stdout);
    fwrite(argmax, sizeof *argmax, argmaxes, stdout);
    fflush(stdout);
    free(tokens);
    free(logits);
    free(hidden);
    free(argmax);
  }
  smc_engine.close(model);
  return 0;
}
