/* A model small enough to follow by hand, in place of a generated program: all values are whole numbers below 251,
 * which f16 and f32 hold exactly, and a byte of an i8 cache, too, without a sign; the scales there hold the cache
 * index. test_engine.py computes the same in Python.
 *
 *   state                 = weights[token]
 *   layer l, KV head g:   K[d] = (state * 3 + l + g + d + index) % 251      V[d] = (state * 5 + l * 7 + g + d) % 251
 *   attention:            sum over all indices j up to the token's own, in layer 1 those in its window (FAKE_WINDOW),
 * of K_j[d] * (j + 1) + V_j[d], d = j % HEAD_DIM after layer l:        state = (state + attention over all heads) % 251
 *   logits[v]             = (state * v + 7) % 251
 *   hidden                = state, token's rotary cosine and sine of pair 1 in table 1, scratch byte of its thread
 */
#define _GNU_SOURCE /* usleep */
#include "program.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef FAKE_WEIGHT_BYTES
#define FAKE_WEIGHT_BYTES VOCAB
#endif
#ifndef FAKE_LAYERS
#define FAKE_LAYERS 3
#endif
#ifndef FAKE_WINDOW
#define FAKE_WINDOW 0
#endif
enum {
  VOCAB = 97,
  STRIDE = 112,
  HIDDEN = 4,
  LAYERS = FAKE_LAYERS,
  HEADS = 2,
  HEAD_DIM = 16,
  STEP = 24,
  FIRST_PAIRS = 5,
  PAIRS = 8,
  PRIME = 251
};

static const float frequencies[FIRST_PAIRS + PAIRS] = {1.0f, 0.5f,  0.25f, 0.125f, 0.1f,  0.75f, 0.3f,
                                                       0.2f, 0.15f, 0.11f, 0.07f,  0.03f, 0.01f};

/* Makes a step slow: the microseconds that every block of the first task takes. */
__attribute__((visibility("default"))) int fake_block_microseconds = 0;

static float read_value(const struct smc_step *step, const uint8_t *at, int index) {
  if (step->kv_dtype == SMC_KV_I8) return (float)at[index];
  return step->kv_dtype == SMC_KV_F16 ? (float)((const _Float16 *)(const void *)at)[index]
                                      : ((const float *)(const void *)at)[index];
}

static void write_value(const struct smc_step *step, uint8_t *at, int index, int value) {
  if (step->kv_dtype == SMC_KV_I8) at[index] = (uint8_t)value;
  else if (step->kv_dtype == SMC_KV_F16) ((_Float16 *)(void *)at)[index] = (_Float16)value;
  else ((float *)(void *)at)[index] = (float)value;
}

/* With a window, layer 1 is a group of its own. */
static int group_of(int layer) { return FAKE_WINDOW && layer == 1; }
static int place_of(int layer) { return !FAKE_WINDOW ? layer : layer == 1 ? 0 : layer - (layer > 1); }

/* K and V of one head of one layer in a page. */
static uint8_t *head_of(const struct smc_step *step, int page, int layer, int head, int value) {
  const struct smc_kv_pages *pages = &step->kv[group_of(layer)];
  const uint64_t half = SMC_PAGE_TOKENS * HEAD_DIM *
                        (step->kv_dtype == SMC_KV_F16   ? 2
                         : step->kv_dtype == SMC_KV_F32 ? 4
                                                        : 1);
  const uint64_t bytes = 2 * half + (step->kv_dtype == SMC_KV_I8 ? 2 * SMC_PAGE_TOKENS * sizeof(float) : 0);
  return pages->data + (uint64_t)page * pages->page_bytes + (uint64_t)(place_of(layer) * HEADS + head) * bytes +
         (uint64_t)value * half;
}

/* The scales [2][SMC_PAGE_TOKENS] of a head in a page of an i8 cache. */
static float *scales_of(const struct smc_step *step, int page, int layer, int head) {
  return (float *)(void *)(head_of(step, page, layer, head, 0) + 2 * SMC_PAGE_TOKENS * HEAD_DIM);
}

static int key_index(int place, int d) { return (place / 16 * HEAD_DIM + d) * 16 + place % 16; }
static int value_index(int place, int d) { return place * HEAD_DIM + d; }

static int32_t *states_of(const struct smc_step *step) { return (int32_t *)(void *)(step->arena + 4096); }
static int32_t *sums_of(const struct smc_step *step) {
  return (int32_t *)(void *)(step->arena + 8192);
} /* [HEADS][STEP] */

/* Where each token of the step lies in its sequence: from its tile. */
static int index_of(const struct smc_step *step, int token) {
  for (int i = 0; i < step->tile_count; i++)
    if (token >= step->tiles[i].token && token < step->tiles[i].token + step->tiles[i].count)
      return step->tiles[i].index + token - step->tiles[i].token;
  abort();
}

static void write_cache(const struct smc_step *step, int layer, int block) {
  const int token = block / HEADS, head = block % HEADS, slot = step->kv[group_of(layer)].slots[token];
  const int state = states_of(step)[token], place = slot % SMC_PAGE_TOKENS;
  for (int d = 0; d < HEAD_DIM; d++) {
    write_value(step, head_of(step, slot / SMC_PAGE_TOKENS, layer, head, 0), key_index(place, d),
                (state * 3 + layer + head + d + index_of(step, token)) % PRIME);
    write_value(step, head_of(step, slot / SMC_PAGE_TOKENS, layer, head, 1), value_index(place, d),
                (state * 5 + layer * 7 + head + d) % PRIME);
  }
  if (step->kv_dtype == SMC_KV_I8)
    for (int which = 0; which < 2; which++)
      scales_of(step, slot / SMC_PAGE_TOKENS, layer, head)[which * SMC_PAGE_TOKENS + place] =
          (float)(index_of(step, token) + which + 1);
}

static void attend(const struct smc_step *step, int layer, int block) {
  const struct smc_tile *tile = &step->tiles[block / HEADS];
  const int head = block % HEADS;
  if (tile->count < 1 || tile->count > SMC_TILE_TOKENS) abort();
  for (int i = 0; i < tile->count; i++) {
    int64_t sum = 0;
    const int index = tile->index + i, first = group_of(layer) && index + 1 > FAKE_WINDOW ? index + 1 - FAKE_WINDOW : 0;
    for (int j = first; j <= index; j++) {
      const int page = step->kv[group_of(layer)].tables[tile->table + j / SMC_PAGE_TOKENS], place = j % SMC_PAGE_TOKENS,
                d = j % HEAD_DIM;
      for (int which = 0; which < 2 && step->kv_dtype == SMC_KV_I8; which++)
        if (scales_of(step, page, layer, head)[which * SMC_PAGE_TOKENS + place] != (float)(j + which + 1)) abort();
      sum += (int64_t)read_value(step, head_of(step, page, layer, head, 0), key_index(place, d)) * (j + 1) +
             (int64_t)read_value(step, head_of(step, page, layer, head, 1), value_index(place, d));
    }
    sums_of(step)[head * STEP + tile->token + i] = (int32_t)(sum % PRIME);
  }
}

static void finish_hidden(const struct smc_thread *thread, const struct smc_step *step, int row) {
  const int token = step->wanted_tokens[row];
  float *hidden = (float *)(void *)step->arena + row * 8;
  const float *rope = step->rope + step->count * 2 * FIRST_PAIRS + token * 2 * PAIRS;
  thread->scratch[0] = 42; /* private: no other thread writes it */
  hidden[0] = (float)states_of(step)[token];
  hidden[1] = rope[1];
  hidden[2] = rope[PAIRS + 1];
  hidden[3] = (float)thread->scratch[0];
}

static void write_logits(const struct smc_step *step, int row) {
  const int token = step->wanted_tokens[step->logits_tokens[row]];
  for (int v = 0; v < VOCAB; v++) step->logits[row * STRIDE + v] = (float)((states_of(step)[token] * v + 7) % PRIME);
}

/* One phase of one task; `layer` only matters for the first three. */
enum work { EMBED, CACHE, ATTEND, ADD, HIDDEN_STATE, LOGITS };

static int run_phase(struct smc_thread *thread, const struct smc_step *step, enum work work, int layer, int32_t count) {
  const int32_t blocks[] = {count};
  struct smc_phase phase;
  smc_phase_begin(thread, &phase, (int32_t)work, 1, blocks);
  while (smc_phase_claim(thread, &phase))
    for (int i = phase.begin; i < phase.end; i++) switch (work) {
        case EMBED:
          if (fake_block_microseconds) usleep((useconds_t)fake_block_microseconds);
          states_of(step)[i] = step->weights[step->tokens[i]];
          break;
        case CACHE: write_cache(step, layer, i); break;
        case ATTEND: attend(step, layer, i); break;
        case ADD:
          for (int head = 0; head < HEADS; head++) states_of(step)[i] += sums_of(step)[head * STEP + i];
          states_of(step)[i] %= PRIME;
          break;
        case HIDDEN_STATE: finish_hidden(thread, step, i); break;
        case LOGITS: write_logits(step, i); break;
      }
  return smc_phase_end(thread, &phase);
}

static void run(struct smc_thread *thread, const struct smc_step *step) {
  if (run_phase(thread, step, EMBED, 0, step->count)) return;
  for (int layer = 0; layer < LAYERS; layer++) {
    if (smc_cancelled(thread)) return;
    if (run_phase(thread, step, CACHE, layer, step->count * HEADS)) return;
    if (run_phase(thread, step, ATTEND, layer, step->tile_count * HEADS)) return;
    if (run_phase(thread, step, ADD, layer, step->count)) return;
  }
  if (run_phase(thread, step, HIDDEN_STATE, 0, step->wanted_count)) return;
  run_phase(thread, step, LOGITS, 0, step->logits_count);
}

/* In the order of `enum work`. */
static const struct smc_task tasks[] = {
    {.function = "embed", .name = "state", .kernel = "embedding", .all = {.token_bytes = 5}},
    {.function = "layer", .name = "cache", .kernel = "cache", .cache_writes = 2 * HEADS * HEAD_DIM * LAYERS},
    {.function = "layer",
     .name = "attention",
     .kernel = "attention",
     .all = {.cache_reads = 2 * HEADS * HEAD_DIM * LAYERS, .cache_macs = HEADS * LAYERS}},
    {.function = "layer", .name = "add", .kernel = "add", .all = {.token_bytes = 8 * LAYERS, .weight_bytes = 3}},
    {.function = "head", .name = "hidden", .kernel = "hidden"},
    {.function = "head",
     .name = "logits",
     .kernel = "linear",
     .wanted = {.weight_bytes = 11, .token_bytes = 4 * VOCAB, .token_macs = VOCAB},
     .head = 1,
     .integer = 1},
};

static const struct smc_level levels[] = {
    {.name = "future", .features = FAKE_FUTURE_FEATURES},
    {.name = "plain", .features = FAKE_PLAIN_FEATURES},
};

static const struct smc_kv_shape kv_groups[] = {{LAYERS - (FAKE_WINDOW > 0), HEADS, HEAD_DIM, 0},
                                                {1, HEADS, HEAD_DIM, FAKE_WINDOW}};

static const struct smc_rope_table rope_tables[] = {{FIRST_PAIRS, 1.0f, frequencies, 0, 0},
                                                    {PAIRS, 1.5f, frequencies + FIRST_PAIRS, 0, 0}};

const struct smc_program smc_program = {
    .abi_version = SMC_ABI_VERSION,
    .name = "fake",
    .weights_hash = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    .layers = LAYERS,
    .hidden_size = HIDDEN,
    .vocab_size = VOCAB,
    .logits_stride = STRIDE,
    .context_length = 300,
    .kv_group_count = FAKE_WINDOW ? 2 : 1,
    .kv_groups = kv_groups,
    .max_step_tokens = STEP,
    .rope_table_count = 2,
    .rope_tables = rope_tables,
    .weight_bytes = FAKE_WEIGHT_BYTES,
    .token_weight_bytes = 0,
    .arena_bytes = 16384,
    .thread_scratch_bytes = 64,
    .hidden_offset = 0,
    .hidden_stride = 8,
    .level_count = 2,
    .levels = levels,
    .task_count = 6,
    .tasks = tasks,
    .run = run,
};
