/* Runs the engine that it is linked with, for a counter of instructions: one thread, no tokenizer, no sampling.
 *
 *     driver ARTIFACT CONTEXT PROMPT DECODE REPEAT
 *
 * With room for CONTEXT tokens. REPEAT times, from an empty cache: PROMPT tokens in one step (if any), then DECODE
 * steps of one token, all with the last token's logits. Prints the engine's feature level, the weight bytes that a
 * token multiplies and the bytes of keys and values of a token, as JSON.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

static smc_model *model;
static char error[SMC_ERROR_BYTES];

static void check(int status) {
  if (status >= 0) return;
  fprintf(stderr, "%s\n", error);
  exit(1);
}

/* `count` tokens, spread over the vocabulary, in one step behind the `length` that sequence 0 has. */
static void step(smc_token *tokens, int32_t length, int32_t count, int32_t vocabulary, float *logits) {
  for (int32_t i = 0; i < count; i++)
    tokens[i] = (smc_token){
        .token = (int32_t)((int64_t)(length + i) * 7919 % vocabulary),
        .position = length + i,
        .index = length + i,
        .flags = i == count - 1 ? SMC_WANT_LOGITS : 0,
    };
  check(smc_engine.step(model, &(smc_batch){.count = count, .tokens = tokens, .logits = logits}, error));
}

int main(int argc, char **argv) {
  if (argc != 6) {
    fprintf(stderr, "usage: driver ARTIFACT CONTEXT PROMPT DECODE REPEAT\n");
    return 2;
  }
  const int32_t context = atoi(argv[2]), prompt = atoi(argv[3]), decode = atoi(argv[4]), repeat = atoi(argv[5]);
  const smc_options options = {.size = sizeof options, .path = argv[1], .threads = 1, .context_length = context};
  if (smc_engine.open(&options, &model, error) < 0) {
    fprintf(stderr, "%s\n", error);
    return 1;
  }
  smc_info info = {.size = sizeof info};
  check(smc_engine.info(model, &info, error));
  smc_token *tokens = calloc((size_t)(prompt + 1), sizeof *tokens);
  float *logits = calloc((size_t)info.logits_stride, sizeof *logits);
  if (!tokens || !logits) return 1;
  check(smc_engine.sequence_create(model, error));
  for (int32_t i = 0; i < repeat; i++) {
    check(smc_engine.sequence_truncate(model, 0, 0, error));
    if (prompt) step(tokens, 0, prompt, info.vocab_size, logits);
    for (int32_t j = 0; j < decode; j++) step(tokens, prompt + j, 1, info.vocab_size, logits);
  }
  printf("{\"level\": \"%s\", \"token_weight_bytes\": %llu, \"kv_bytes_per_token\": %llu}\n", info.level,
         (unsigned long long)info.token_weight_bytes, (unsigned long long)info.kv_bytes_per_token);
  smc_engine.close(model);
  return 0;
}
