/* A batch as steps: the memory that steps take, the checks of a batch, and the tables that the threads read. */
#include "internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ALIGNMENT 64        /* of rows of logits, which kernels rely on */
#define MOST_PARTIALS 256   /* pairs of a token and a split, unless one token alone needs more */
#define MOST_ARGMAXES 64    /* tokens of a step that request the id of their largest logit */
#define BLOCKS_PER_THREAD 4 /* with fewer blocks of attention some threads would idle: blocks are split */

/* ---- memory */

/* Places `bytes` bytes at *offset and moves it on. */
static uint64_t place(uint64_t *offset, uint64_t bytes) {
  const uint64_t begin = *offset;
  *offset = smc_round_up(begin + bytes, SMC_CACHE_LINE);
  return begin;
}

static int32_t splits_for(int32_t tokens) { return (tokens + SMC_SPLIT_TOKENS - 1) / SMC_SPLIT_TOKENS; }

int smc_step_allocate(smc_model *model, char *error) {
  const struct smc_program *program = model->program;
  const uint64_t step = (uint64_t)program->max_step_tokens;
  uint64_t end = 0;
  const uint64_t tokens = place(&end, step * sizeof *model->tokens);
  const uint64_t positions = place(&end, step * sizeof *model->positions);
  const uint64_t slots = place(&end, (uint64_t)program->kv_group_count * step * sizeof *model->slots);
  const uint64_t wanted = place(&end, step * sizeof *model->wanted_tokens);
  const uint64_t logits_wanted = place(&end, step * sizeof *model->logits_tokens),
                 argmaxes_wanted = place(&end, MOST_ARGMAXES * sizeof *model->argmax_tokens);
  const uint64_t argmaxes = place(&end, (uint64_t)model->workers * MOST_ARGMAXES * sizeof *model->argmaxes),
                 tiles = place(&end, step * sizeof *model->tiles);
  const uint64_t wanted_tiles = place(&end, step * sizeof *model->wanted_tiles);
  uint64_t pairs = 0;
  for (int32_t i = 0; i < program->rope_table_count; i++) pairs += (uint64_t)program->rope_tables[i].pairs;
  const uint64_t rope = place(&end, step * 2 * pairs * sizeof(float));
  const int32_t most = splits_for(model->cache.context_length); /* of one token */
  if (most > 1 && model->workers > 1) model->partial_count = most > MOST_PARTIALS ? most : MOST_PARTIALS;
  const uint64_t beyond = place(&end, sizeof *model->beyond);
  void *memory = mmap(NULL, end, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    return smc_fail(error, SMC_NO_MEMORY, "can't allocate %llu bytes for the tables of a step",
                    (unsigned long long)end);
  model->tables = memory;
  model->table_bytes = end;
  model->memory_bytes = end;
  model->tokens = (int32_t *)(void *)(model->tables + tokens);
  model->positions = (int32_t *)(void *)(model->tables + positions);
  model->slots = (int32_t *)(void *)(model->tables + slots);
  for (int32_t i = 0; i < program->kv_group_count; i++) {
    const struct smc_kv_group *group = &model->cache.groups[i];
    model->kv[i] = (struct smc_kv_pages){.data = group->data,
                                         .page_bytes = group->page_bytes,
                                         .tables = group->tables,
                                         .slots = model->slots + (uint64_t)i * step};
  }
  model->wanted_tokens = (int32_t *)(void *)(model->tables + wanted);
  model->logits_tokens = (int32_t *)(void *)(model->tables + logits_wanted);
  model->argmax_tokens = (int32_t *)(void *)(model->tables + argmaxes_wanted);
  model->argmaxes = (struct smc_argmax *)(void *)(model->tables + argmaxes);
  model->tiles = (struct smc_tile *)(void *)(model->tables + tiles);
  model->wanted_tiles = (struct smc_tile *)(void *)(model->tables + wanted_tiles);
  model->rope = (float *)(void *)(model->tables + rope);
  model->beyond = (int32_t *)(void *)(model->tables + beyond);
  return smc_device_allocate(model, error);
}

void smc_step_free(smc_model *model) {
  smc_device_release(model);
  if (model->tables) munmap(model->tables, model->table_bytes);
  free(model->bounce);
}

/* ---- a batch */

/* Checks the whole batch and counts every sequence's tokens, before anything changes. */
static int check_batch(smc_model *model, const smc_batch *batch, char *error) {
  const struct smc_program *program = model->program;
  struct smc_kv_cache *cache = &model->cache;
  if (!batch || batch->count < 1 || !batch->tokens) return smc_fail(error, SMC_BAD_INPUT, "the batch has no tokens");
  for (int32_t i = 0; i < batch->count; i++) {
    const smc_token *token = &batch->tokens[i];
    if (token->token < 0 || token->token >= program->vocab_size)
      return smc_fail(error, SMC_BAD_INPUT, "token %d at place %d of the batch is not in the vocabulary of %d",
                      token->token, i, program->vocab_size);
    const int status = smc_kv_check(cache, token->sequence, error);
    if (status) return status;
    struct smc_sequence *sequence = &cache->sequences[token->sequence];
    if (sequence->pending && token->sequence != token[-1].sequence)
      return smc_fail(error, SMC_BAD_INPUT, "the tokens of sequence %d do not follow each other in the batch",
                      token->sequence);
    const int64_t index = (int64_t)sequence->length + sequence->pending;
    if (token->index != index)
      return smc_fail(error, SMC_BAD_INPUT,
                      "token %d of the batch has cache index %d, but sequence %d continues at %lld", i, token->index,
                      token->sequence, (long long)index);
    if (index >= cache->context_length)
      return smc_fail(error, SMC_NO_SPACE, "sequence %d would outgrow the context of %d tokens", token->sequence,
                      cache->context_length);
    if (token->parent)
      return smc_fail(error, SMC_UNSUPPORTED, "token %d of the batch has a parent: trees of tokens are not supported",
                      i);
    if (token->position < 0)
      return smc_fail(error, SMC_BAD_INPUT, "token %d of the batch has the negative position %d", i, token->position);
    if (program->positions && token->position >= program->positions)
      return smc_fail(error, SMC_BAD_INPUT, "token %d of the batch has the position %d, and the model has learned %d",
                      i, token->position, program->positions);
    if (token->flags & ~(uint32_t)(SMC_WANT_LOGITS | SMC_WANT_HIDDEN | SMC_WANT_ARGMAX))
      return smc_fail(error, SMC_BAD_INPUT, "token %d of the batch has unknown flags %#x", i, token->flags);
    if ((token->flags & SMC_WANT_LOGITS && !batch->logits) || (token->flags & SMC_WANT_HIDDEN && !batch->hidden) ||
        (token->flags & SMC_WANT_ARGMAX && !batch->argmax))
      return smc_fail(
          error, SMC_BAD_INPUT,
          "token %d of the batch requests logits, a hidden state or the largest logit, for which there is no buffer",
          i);
    if (token->flags & SMC_WANT_ARGMAX && token->flags & SMC_WANT_LOGITS)
      return smc_fail(error, SMC_BAD_INPUT,
                      "token %d of the batch requests its logits and the largest one: request only the logits", i);
    if (token->flags & SMC_WANT_ARGMAX && !program->finds_argmax)
      return smc_fail(
          error, SMC_UNSUPPORTED,
          "token %d of the batch requests its largest logit, which this model's head does not find: request the logits",
          i);
    sequence->pending++;
  }
  return SMC_OK;
}

/* Cosines and sines of position * frequency, the product in float32 as transformers has it. They are rounded from
 * double: C libraries differ in the last bit of cosf, and one model should give one result with all of them. */
static void fill_rope(const smc_model *model, const smc_token *tokens, int32_t count) {
  const struct smc_program *program = model->program;
  const struct smc_rope_table *end = program->rope_tables + program->rope_table_count;
  float *out = model->rope;
  for (const struct smc_rope_table *table = program->rope_tables; table < end; table++) {
    const int is_short = model->cache.context_length <= table->short_context;
    const float *frequencies = is_short ? table->short_frequencies : table->inverse_frequencies;
    for (int32_t i = 0; i < count; i++, out += 2 * table->pairs)
      for (int32_t pair = 0; pair < table->pairs; pair++) {
        const float angle = (float)tokens[i].position * frequencies[pair];
        out[pair] = (float)cos((double)angle) * table->magnitude;
        out[table->pairs + pair] = (float)sin((double)angle) * table->magnitude;
      }
  }
}

/* The number of blocks into which attention over `longest` cached tokens is split: with few and long sequences, threads
 * would wait for the one with the most heads. Results have the same bits. */
static int32_t choose_splits(const smc_model *model, const struct smc_step *step, int32_t longest) {
  const struct smc_program *program = model->program;
  const int32_t splits = splits_for(longest);
  int32_t heads = INT32_MAX; /* of the layer with the fewest */
  for (int32_t i = 0; i < program->kv_group_count; i++)
    if (program->kv_groups[i].kv_heads < heads) heads = program->kv_groups[i].kv_heads;
  const int64_t blocks = (int64_t)step->tile_count * heads;
  const int few = blocks < (int64_t)model->workers * BLOCKS_PER_THREAD;
  return few && (int64_t)step->count * splits <= model->partial_count ? splits : 1;
}

/* The tiles of the last layer's attention: those with requested tokens. A tile that is alone may write its K and V
 * itself. */
static void choose_wanted_tiles(const smc_model *model, struct smc_step *step) {
  int32_t done = 0;
  step->wanted_tile_count = 0;
  for (const struct smc_tile *tile = model->tiles; tile < model->tiles + step->tile_count; tile++) {
    const int32_t first = done;
    while (done < step->wanted_count && model->wanted_tokens[done] < tile->token + tile->count) done++;
    if (done > first || (step->alone && step->splits == 1)) model->wanted_tiles[step->wanted_tile_count++] = *tile;
  }
  step->wanted_begin = step->wanted_end = 0;
  if (step->wanted_tile_count == 0) return;
  const struct smc_tile *last = &model->wanted_tiles[step->wanted_tile_count - 1];
  const int32_t end = (int32_t)smc_round_up((uint64_t)(last->token + last->count), SMC_TOKEN_BLOCK);
  step->wanted_begin = model->wanted_tiles[0].token / SMC_TOKEN_BLOCK * SMC_TOKEN_BLOCK;
  step->wanted_end = end < step->count ? end : step->count;
}

/* Makes place in the cache for the step's i-th token, whether the first of its sequence or not, and remembers it. */
static void make_place(smc_model *model, const smc_token *token, int32_t i, int first) {
  struct smc_kv_cache *cache = &model->cache;
  const int32_t page = token->index / SMC_PAGE_TOKENS, place = token->index % SMC_PAGE_TOKENS;
  if (first) smc_kv_slide(cache, token->sequence, token->index);
  if (first || place == 0) smc_kv_extend(cache, token->sequence, token->index);
  for (int32_t g = 0; g < cache->group_count; g++)
    model->slots[(int64_t)g * model->program->max_step_tokens + i] =
        smc_kv_table(cache, &cache->groups[g], token->sequence)[page] * SMC_PAGE_TOKENS + place;
  if (cache->past)
    cache->past[(int64_t)token->sequence * cache->context_length + token->index] =
        (struct smc_past_token){token->token, token->position};
}

/* Fills the step's tables for as many of the tokens as go into one step; returns how many. */
static int32_t fill_step(smc_model *model, struct smc_step *step, const smc_token *tokens, int32_t count,
                         int32_t most_logits) {
  struct smc_kv_cache *cache = &model->cache;
  if (count > model->program->max_step_tokens) count = model->program->max_step_tokens;
  int32_t longest = 0;
  step->tile_count = step->wanted_count = step->logits_count = step->argmax_count = step->count = 0;
  step->alone = 1;
  for (; step->count < count; step->count++) {
    const smc_token *token = &tokens[step->count];
    const int32_t i = step->count, table = token->sequence * cache->table_pages;
    if (token->flags & SMC_WANT_LOGITS) {
      if (step->logits_count == most_logits) break;
      model->logits_tokens[step->logits_count++] = step->wanted_count;
    }
    if (token->flags & SMC_WANT_ARGMAX) {
      if (step->argmax_count == MOST_ARGMAXES) break;
      model->argmax_tokens[step->argmax_count++] = step->wanted_count;
    }
    if (token->flags) model->wanted_tokens[step->wanted_count++] = i;
    model->tokens[i] = token->token;
    model->positions[i] = token->position;
    const int first = i == 0 || token[-1].sequence != token->sequence;
    make_place(model, token, i, first);
    if (first || model->tiles[step->tile_count - 1].count == SMC_TILE_TOKENS) {
      step->alone &= first;
      model->tiles[step->tile_count++] =
          (struct smc_tile){.token = i, .count = 0, .table = table, .index = token->index};
    }
    model->tiles[step->tile_count - 1].count++;
    if (token->index >= longest) longest = token->index + 1;
  }
  step->splits = choose_splits(model, step, longest);
  choose_wanted_tiles(model, step);
  fill_rope(model, tokens, step->count);
  return step->count;
}

static int fail_beyond(const smc_model *model, char *error) {
  if (model->cache.kv_dtype == SMC_KV_F16)
    return smc_fail(error, SMC_NOT_FINITE,
                    "a key or a value is beyond the range of the f16 KV cache: use an f32 one (--kv-dtype f32)");
  return smc_fail(
      error, SMC_NOT_FINITE,
      "a key or a value is NaN or infinite: the model's weights or inputs exceed the range of the arithmetic");
}

static int run_batch(smc_model *model, const smc_batch *batch, char *error) {
  const struct smc_program *program = model->program;
  const uint64_t stride = (uint64_t)program->logits_stride;
  const int direct = (uintptr_t)batch->logits % ALIGNMENT == 0;
  const int32_t most_logits = smc_device_most_logits(direct);
  if (!direct && !model->bounce) {
    void *memory;
    if (posix_memalign(&memory, ALIGNMENT, (uint64_t)most_logits * stride * sizeof(float)))
      return smc_fail(error, SMC_NO_MEMORY, "can't allocate a buffer for logits");
    model->bounce = memory;
  }
  struct smc_step tables = {.kv_dtype = model->cache.kv_dtype,
                            .tokens = model->tokens,
                            .positions = model->positions,
                            .rope = model->rope,
                            .tiles = model->tiles,
                            .kv = model->kv,
                            .wanted_tokens = model->wanted_tokens,
                            .wanted_tiles = model->wanted_tiles,
                            .logits_tokens = model->logits_tokens,
                            .argmax_tokens = model->argmax_tokens,
                            .argmaxes = model->argmaxes,
                            .beyond = model->beyond,
                            .kernels = model->level->kernels,
                            .prefetch_distance = model->prefetch_distance};
  struct smc_step *step = &tables;
  float *logits = batch->logits, *hidden = batch->hidden;
  int32_t *argmax = batch->argmax;
  for (int32_t begin = 0; begin < batch->count;) {
    const smc_token *tokens = batch->tokens + begin;
    begin += fill_step(model, step, tokens, batch->count - begin, most_logits);
    step->logits = direct ? logits : model->bounce;
    smc_argmax_clear(step, model->workers);
    *model->beyond = 0;
    if (model->profiler.on) smc_profile_count(&model->profiler, step);
    const int status = smc_device_run(model, step, batch->cancels, error);
    if (status) return status;
    if (*model->beyond) return fail_beyond(model, error);
    if (!direct) memcpy(logits, model->bounce, (uint64_t)step->logits_count * stride * sizeof(float));
    logits += (uint64_t)step->logits_count * stride;
    for (int32_t i = 0; i < step->argmax_count; i++)
      if ((*argmax++ = smc_argmax_of(step, model->workers, i)) < 0)
        return smc_fail(error, SMC_NOT_FINITE, SMC_SAYS_NOT_FINITE);
    const float *states = hidden ? smc_device_hidden(model, step) : NULL;
    if (hidden && !states) return smc_fail(error, SMC_FAILED, "the device can't return hidden states");
    for (int32_t i = 0; i < step->wanted_count; i++) {
      if (!(tokens[step->wanted_tokens[i]].flags & SMC_WANT_HIDDEN)) continue;
      memcpy(hidden, states + (uint64_t)i * program->hidden_stride, (uint64_t)program->hidden_size * sizeof(float));
      hidden += program->hidden_size;
    }
  }
  return SMC_OK;
}

/* Computes the tokens of a stale sequence once more: then its windows have what its next token sees. */
static int run_again(smc_model *model, int32_t sequence, uint32_t cancels, char *error) {
  struct smc_kv_cache *cache = &model->cache;
  const int32_t length = cache->sequences[sequence].length;
  const struct smc_past_token *past = cache->past + (int64_t)sequence * cache->context_length;
  smc_token *tokens = calloc((size_t)length, sizeof *tokens);
  if (!tokens) return smc_fail(error, SMC_NO_MEMORY, "can't allocate %d tokens, which a window needs again", length);
  for (int32_t i = 0; i < length; i++)
    tokens[i] = (smc_token){.token = past[i].token, .sequence = sequence, .position = past[i].position, .index = i};
  const int status = run_batch(model, &(smc_batch){.count = length, .tokens = tokens, .cancels = cancels}, error);
  if (!status) cache->sequences[sequence].stale = 0;
  free(tokens);
  return status;
}

static int run_stale(smc_model *model, uint32_t cancels, char *error) {
  int status = SMC_OK;
  for (int32_t i = 0; i < model->cache.sequence_count && !status; i++)
    if (model->cache.sequences[i].pending && model->cache.sequences[i].stale)
      status = run_again(model, i, cancels, error);
  return status;
}

int smc_step_batch(smc_model *model, const smc_batch *batch, char *error) {
  const int profiled = model->profiler.on;
  if (profiled) {
    smc_pool_await(model->pool); /* a thread that leaves late still counts */
    smc_profile_step_begin(&model->profiler);
  }
  int status = check_batch(model, batch, error);
  if (!status && atomic_load(&model->cancels) != batch->cancels)
    status = smc_fail(error, SMC_CANCELLED, "the step was cancelled");
  if (!status && !model->artifact.checked)
    status = smc_artifact_check(&model->artifact, &model->cancels, batch->cancels, error);
  if (!status) status = smc_kv_reserve(&model->cache, error);
  if (!status) status = run_stale(model, batch->cancels, error);
  if (!status) status = run_batch(model, batch, error);
  smc_kv_finish(&model->cache, status == SMC_OK);
  if (profiled) smc_profile_step_end(&model->profiler);
  return status;
}
