/* A program of the engine whose logits can be computed by hand: it stands in for a compiled model in the tests.
 *
 * A token's K is its id. The logits of a token are highest at the sum of (i + 1) * id_i over all tokens i of its
 * sequence up to itself, modulo VOCAB, and fall by 0.125 a step round the vocabulary. So they depend on every token of
 * the past and on its place, through the block table of the KV cache. A step that begins with token SLOW takes a
 * second, in layers of 10 ms that a cancel() can end.
 */
#include <string.h>
#include <time.h>

#include "program.h"

enum { VOCAB = 259, STRIDE = 272, HIDDEN = 4, HEAD = 16, STEP_TOKENS = 16, SLOW = 7, LAYERS = 100 };

static uint16_t *key(const struct smc_step *step, int32_t slot) {
  const int32_t token = slot % SMC_PAGE_TOKENS, element = token / 16 * HEAD * 16 + token % 16; /* of dimension 0 */
  uint8_t *page = step->kv->data + (uint64_t)(slot / SMC_PAGE_TOKENS) * step->kv->page_bytes;
  return (uint16_t *)(void *)(page + element * (step->kv_dtype == SMC_KV_F16 ? 2 : 4));
}

static void write_logits(const struct smc_step *step, const struct smc_tile *tile, int32_t token, float *logits) {
  const int32_t index = tile->index + token - tile->token;
  int64_t sum = 0;
  for (int32_t i = 0; i <= index; i++) {
    const int32_t page = step->kv->tables[tile->table + i / SMC_PAGE_TOKENS];
    sum += (int64_t)(i + 1) * *key(step, page * SMC_PAGE_TOKENS + i % SMC_PAGE_TOKENS);
  }
  for (int32_t v = 0; v < VOCAB; v++) logits[v] = -0.125f * (float)(((v - sum) % VOCAB + VOCAB) % VOCAB);
}

static void run(struct smc_thread *thread, const struct smc_step *step) {
  struct smc_phase phase;
  const int32_t tokens[] = {step->count}, rows[] = {step->logits_count};
  smc_phase_begin(thread, &phase, 0, 1, tokens);
  while (smc_phase_claim(thread, &phase))
    for (int32_t i = phase.begin; i < phase.end; i++) {
      *key(step, step->kv->slots[i]) = (uint16_t)step->tokens[i];
      float *hidden = (float *)(void *)step->arena + i * HIDDEN;
      for (int32_t j = 0; i < step->wanted_count && j < HIDDEN; j++)
        hidden[j] = (float)(step->tokens[step->wanted_tokens[i]] + j);
    }
  if (smc_phase_end(thread, &phase)) return;
  for (int32_t layer = 0; step->tokens[0] == SLOW && layer < LAYERS; layer++) {
    nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    if (smc_cancelled(thread)) return;
  }
  smc_phase_begin(thread, &phase, 1, 1, rows);
  while (smc_phase_claim(thread, &phase))
    for (int32_t row = phase.begin; row < phase.end; row++) {
      const int32_t token = step->wanted_tokens[step->logits_tokens[row]];
      const struct smc_tile *tile = step->tiles;
      while (token >= tile->token + tile->count) tile++;
      write_logits(step, tile, token, step->logits + (uint64_t)row * STRIDE);
    }
  smc_phase_end(thread, &phase);
}

static const float frequencies[8];
static const struct smc_rope_table rope = {8, 1.0f, frequencies, 0, 0};
static const struct smc_kv_shape shape = {1, 1, HEAD, 0};
static const struct smc_task tasks[] = {
    {.function = "all", .name = "hidden", .kernel = "copy", .all = {.token_bytes = 16}, .cache_writes = 2 * HEAD},
    {.function = "all",
     .name = "logits",
     .kernel = "sum",
     .wanted = {.weight_bytes = 48, .token_macs = VOCAB},
     .head = 1},
};
static const struct smc_level levels[] = {{"best", "", NULL}, {"floor", "", NULL}, {"never", "no-such-feature", NULL}};

const struct smc_program smc_program = {.abi_version = SMC_ABI_VERSION,
                                        .name = "counting",
                                        .weights_hash = "",
                                        .layers = 1,
                                        .hidden_size = HIDDEN,
                                        .vocab_size = VOCAB,
                                        .logits_stride = STRIDE,
                                        .context_length = 200,
                                        .kv_group_count = 1,
                                        .kv_groups = &shape,
                                        .max_step_tokens = STEP_TOKENS,
                                        .rope_table_count = 1,
                                        .rope_tables = &rope,
                                        .weight_bytes = 64,
                                        .token_weight_bytes = 48,
                                        .arena_bytes = STEP_TOKENS * HIDDEN * sizeof(float),
                                        .thread_scratch_bytes = 64,
                                        .hidden_offset = 0,
                                        .hidden_stride = HIDDEN,
                                        .level_count = 3,
                                        .levels = levels,
                                        .run = run,
                                        .task_count = 2,
                                        .tasks = tasks};
