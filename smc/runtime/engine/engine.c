/* The function table: opening a model, running a batch, and the checks of everything that comes from outside. */
#include "internal.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_CONTEXT (1 << 24)
#define MAX_SEQUENCES 4096
#define BOUNCE_ROWS 32 /* rows of logits that go through a buffer of ours where the caller's is not aligned */
#define ALIGNMENT 64
#define MOST_PARTIALS 256 /* pairs of a token and a split, unless one token alone needs more */
#define MOST_TOPS 64      /* tokens of a step that want the id of their largest logit */
#define BLOCKS_PER_THREAD 4 /* fewer blocks of attention are not shared out well enough: they are split */

struct smc_model {
  const struct smc_program *program;
  const struct smc_level *level;
  pthread_mutex_t mutex; /* held by every function but cancel */
  struct smc_artifact artifact;
  struct smc_kv_cache cache;
  struct smc_pool *pool;
  int own_pool;
  struct smc_profiler profiler;
  atomic_int cancel;
  /* One mapping: the arena, the threads' scratch, and the tables of a step. */
  uint8_t *memory;
  uint64_t memory_bytes, scratch_stride;
  uint8_t *arena, *scratch;
  int32_t *tokens, *cache_slots, *logits_tokens, *top_tokens;
  struct smc_top *tops;
  struct smc_tile *tiles;
  float *rope, *bounce; /* bounce: NULL until it is needed */
  float *partials;
  int32_t partial_count; /* for how many pairs of a token and a split there is room */
  char error[SMC_ERROR_BYTES];
};

int smc_fail(char *error, int status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error, SMC_ERROR_BYTES, format, arguments);
  va_end(arguments);
  for (char *c = error; *c; c++)
    if ((unsigned char)*c < ' ' || *c == 127) *c = '?'; /* names come from files */
  return status;
}

/* ---- open */

/* 0 stands for `standard`. */
static int count_option(const char *name, int32_t *value, int32_t standard, int32_t limit, char *error) {
  if (*value < 0 || *value > limit) return smc_fail(error, SMC_BAD_INPUT, "%s is %d: it must be between 1 and %d, or 0 for the default", name, *value, limit);
  if (*value == 0) *value = standard;
  return SMC_OK;
}

static int check_options(const struct smc_program *program, smc_options *options, char *error) {
  int status;
  if (program->abi_version != SMC_ABI_VERSION)
    return smc_fail(error, SMC_FAILED, "the program was generated for version %u of the engine, which is %d", program->abi_version, SMC_ABI_VERSION);
  if (options->size != sizeof *options)
    return smc_fail(error, SMC_BAD_INPUT, "smc_options has %u bytes where this engine wants %zu", options->size, sizeof *options);
  if (!options->path) return smc_fail(error, SMC_BAD_INPUT, "no artifact is named: options.path is NULL");
  if (options->adapter) return smc_fail(error, SMC_BAD_INPUT, "adapters are not supported yet: options.adapter must be NULL");
  if (options->kv_dtype < SMC_KV_F16 || options->kv_dtype > SMC_KV_I8)
    return smc_fail(error, SMC_BAD_INPUT, "kv_dtype is %d: it must be 0 (f16), 1 (f32) or 2 (i8)", options->kv_dtype);
  if ((status = count_option("context_length", &options->context_length, program->context_length, MAX_CONTEXT, error))) return status;
  if ((status = count_option("sequences", &options->sequences, 1, MAX_SEQUENCES, error))) return status;
  if ((status = count_option("threads", &options->threads, 0, SMC_MAX_THREADS, error))) return status;
  if (options->pool && !smc_pool_valid(options->pool))
    return smc_fail(error, SMC_BAD_INPUT, "options.pool is no pool of this version of the engine");
  return SMC_OK;
}

/* The best level that the CPU has, or the one that is asked for. */
static int choose_level(const struct smc_program *program, const char *asked, const struct smc_level **level, char *error) {
  char missing[256] = "", names[256] = "";
  if (!asked || !*asked) asked = getenv("SMC_LEVEL");
  if (asked && !*asked) asked = NULL;
  for (int32_t i = 0; i < program->level_count; i++) {
    const struct smc_level *candidate = &program->levels[i];
    snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "", candidate->name);
    if (asked && strcmp(asked, candidate->name)) continue;
    missing[0] = 0; /* in the end: what the lowest level misses */
    if (!smc_cpu_missing(candidate->features, missing, sizeof missing)) {
      *level = candidate;
      return SMC_OK;
    }
    if (asked) return smc_fail(error, SMC_UNSUPPORTED, "this CPU cannot run level %s: it lacks %s", asked, missing);
  }
  if (asked) return smc_fail(error, SMC_BAD_INPUT, "the artifact has no level '%s': it has %s", asked, names);
  return smc_fail(error, SMC_UNSUPPORTED, "this CPU has none of the artifact's levels (%s): it lacks %s", names, missing);
}

/* Places `bytes` bytes at *offset and moves it on. */
static uint64_t place(uint64_t *offset, uint64_t bytes) {
  const uint64_t begin = *offset;
  *offset = smc_round_up(begin + bytes, SMC_CACHE_LINE);
  return begin;
}

static int32_t splits_for(int32_t tokens) { return (tokens + SMC_SPLIT_TOKENS - 1) / SMC_SPLIT_TOKENS; }

static int allocate(smc_model *model, char *error) {
  const struct smc_program *program = model->program;
  const uint64_t step = (uint64_t)program->max_step_tokens;
  uint64_t end = 0;
  model->scratch_stride = smc_round_up(program->thread_scratch_bytes, SMC_CACHE_LINE);
  const uint64_t arena = place(&end, program->arena_bytes);
  const uint64_t scratch = place(&end, model->scratch_stride * (uint64_t)model->pool->threads);
  const uint64_t tokens = place(&end, step * sizeof *model->tokens), slots = place(&end, step * sizeof *model->cache_slots);
  const uint64_t wanted = place(&end, step * sizeof *model->logits_tokens), tops_wanted = place(&end, MOST_TOPS * sizeof *model->top_tokens);
  const uint64_t tops = place(&end, (uint64_t)model->pool->threads * MOST_TOPS * sizeof *model->tops), tiles = place(&end, step * sizeof *model->tiles);
  const uint64_t rope = place(&end, step * 2 * (uint64_t)program->rope_tables * (uint64_t)program->rope_pairs * sizeof(float));
  const int32_t most = splits_for(model->cache.context_length); /* of one token */
  if (most > 1 && model->pool->threads > 1) model->partial_count = most > MOST_PARTIALS ? most : MOST_PARTIALS;
  const uint64_t partials = place(&end, (uint64_t)model->partial_count * program->partial_bytes);
  void *memory = mmap(NULL, end, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return smc_fail(error, SMC_NO_MEMORY, "cannot allocate %llu bytes for activations", (unsigned long long)end);
  smc_advise_huge_pages(memory, end);
  model->memory = memory;
  model->memory_bytes = end;
  model->arena = model->memory + arena;
  model->scratch = model->memory + scratch;
  model->tokens = (int32_t *)(void *)(model->memory + tokens);
  model->cache_slots = (int32_t *)(void *)(model->memory + slots);
  model->logits_tokens = (int32_t *)(void *)(model->memory + wanted);
  model->top_tokens = (int32_t *)(void *)(model->memory + tops_wanted);
  model->tops = (struct smc_top *)(void *)(model->memory + tops);
  model->tiles = (struct smc_tile *)(void *)(model->memory + tiles);
  model->rope = (float *)(void *)(model->memory + rope);
  model->partials = (float *)(void *)(model->memory + partials);
  return SMC_OK;
}

static void model_close(smc_model *model) {
  if (!model) return;
  if (model->pool && model->pool->process == getpid()) smc_pool_await(model->pool);
  if (model->own_pool) smc_pool_destroy(model->pool);
  smc_profile_close(&model->profiler);
  smc_kv_close(&model->cache);
  smc_artifact_close(&model->artifact);
  if (model->memory) munmap(model->memory, model->memory_bytes);
  free(model->bounce);
  pthread_mutex_destroy(&model->mutex);
  free(model);
}

static int open_parts(smc_model *model, const smc_options *options, char *error) {
  const struct smc_program *program = model->program;
  int status = smc_artifact_open(&model->artifact, options->path, program->weight_bytes, error);
  if (status) return status;
  smc_weights_to_huge_pages(&model->artifact);
  status = smc_kv_open(&model->cache, program, options->context_length, options->sequences, options->kv_dtype, error);
  if (status) return status;
  model->pool = options->pool;
  if (!model->pool) {
    status = smc_pool_create(options->threads, &model->pool);
    if (status && options->threads) return smc_fail(error, status, "the machine refuses to start %d threads; give fewer", options->threads);
    if (status) return smc_fail(error, status, "the machine refuses to start a thread for every CPU; give fewer");
    model->own_pool = 1;
  }
  return allocate(model, error);
}

static int model_open(const smc_options *given, smc_model **result, char *error, size_t error_size) {
  char sentence[SMC_ERROR_BYTES] = "";
  const struct smc_level *level = NULL;
  int status = SMC_BAD_INPUT;
  if (!result || !given) {
    smc_fail(sentence, status, "smc_engine.open was called with a NULL pointer");
    if (error && error_size) snprintf(error, error_size, "%s", sentence);
    return status;
  }
  *result = NULL;
  smc_options options = {.size = given->size};
  if (given->size == sizeof options) options = *given;
  if (!(status = check_options(&smc_program, &options, sentence))) status = choose_level(&smc_program, options.level, &level, sentence);
  smc_model *model = status ? NULL : calloc(1, sizeof *model);
  if (!status && !model) status = smc_fail(sentence, SMC_NO_MEMORY, "cannot allocate a model");
  if (model) {
    model->program = &smc_program;
    model->level = level;
    pthread_mutex_init(&model->mutex, NULL);
    if ((status = open_parts(model, &options, sentence))) model_close(model);
  }
  if (status) {
    if (error && error_size) snprintf(error, error_size, "%s", sentence);
    return status;
  }
  if (options.log) {
    snprintf(sentence, sizeof sentence, "%s: level %s, %d threads, context %d%s", smc_program.name, level->name, model->pool->threads,
             options.context_length, options.context_length > smc_program.context_length ? ", which is more than it was trained for" : "");
    options.log(options.log_user, sentence);
  }
  *result = model;
  return SMC_OK;
}

static const char *model_error(const smc_model *model) { return model ? model->error : "the model is NULL"; }

static int model_info(const smc_model *model, smc_info *info) {
  if (!model || !info || info->size != sizeof *info) return SMC_BAD_INPUT;
  const struct smc_program *program = model->program;
  const struct smc_kv_cache *cache = &model->cache;
  pthread_mutex_lock((pthread_mutex_t *)(uintptr_t)&model->mutex);
  *info = (smc_info){
      .size = sizeof *info, .layers = program->layers, .vocab_size = program->vocab_size, .hidden_size = program->hidden_size,
      .logits_stride = program->logits_stride, .context_length = cache->context_length, .sequences = cache->sequence_count,
      .threads = model->pool->threads, .kv_dtype = cache->kv_dtype, .max_step_tokens = program->max_step_tokens,
      .finds_top = program->finds_top, .kv_page_tokens = SMC_PAGE_TOKENS, .name = program->name, .level = model->level->name,
      .weight_bytes = model->artifact.weight_bytes, .token_weight_bytes = program->token_weight_bytes,
      .kv_bytes_per_token = cache->page_bytes / SMC_PAGE_TOKENS, .kv_bytes_used = (uint64_t)cache->pages_used * cache->page_bytes,
      .activation_bytes = model->memory_bytes};
  pthread_mutex_unlock((pthread_mutex_t *)(uintptr_t)&model->mutex);
  return SMC_OK;
}

/* ---- step */

/* Checks the whole batch and counts every sequence's tokens, before anything changes. */
static int check_batch(smc_model *model, const smc_batch *batch) {
  const struct smc_program *program = model->program;
  struct smc_kv_cache *cache = &model->cache;
  if (!batch || batch->count < 1 || !batch->tokens) return smc_fail(model->error, SMC_BAD_INPUT, "the batch has no tokens");
  for (int32_t i = 0; i < batch->count; i++) {
    const smc_token *token = &batch->tokens[i];
    if (token->token < 0 || token->token >= program->vocab_size)
      return smc_fail(model->error, SMC_BAD_INPUT, "token %d at place %d of the batch is not in the vocabulary of %d", token->token, i, program->vocab_size);
    const int status = smc_kv_check(cache, token->sequence, model->error);
    if (status) return status;
    struct smc_sequence *sequence = &cache->sequences[token->sequence];
    if (sequence->pending && token->sequence != token[-1].sequence)
      return smc_fail(model->error, SMC_BAD_INPUT, "the tokens of sequence %d do not follow each other in the batch", token->sequence);
    const int64_t index = (int64_t)sequence->length + sequence->pending;
    if (token->index != index)
      return smc_fail(model->error, SMC_BAD_INPUT, "token %d of the batch has cache index %d where sequence %d goes on at %lld", i,
                      token->index, token->sequence, (long long)index);
    if (index >= cache->context_length)
      return smc_fail(model->error, SMC_NO_SPACE, "sequence %d would outgrow the context of %d tokens", token->sequence, cache->context_length);
    if (token->position < 0) return smc_fail(model->error, SMC_BAD_INPUT, "token %d of the batch has the negative position %d", i, token->position);
    if (token->flags & ~(uint32_t)(SMC_WANT_LOGITS | SMC_WANT_HIDDEN | SMC_WANT_TOP))
      return smc_fail(model->error, SMC_BAD_INPUT, "token %d of the batch has unknown flags %#x", i, token->flags);
    if ((token->flags & SMC_WANT_LOGITS && !batch->logits) || (token->flags & SMC_WANT_HIDDEN && !batch->hidden) || (token->flags & SMC_WANT_TOP && !batch->top))
      return smc_fail(model->error, SMC_BAD_INPUT, "token %d of the batch wants logits, a hidden state or the largest logit, for which there is no buffer", i);
    if (token->flags & SMC_WANT_TOP && token->flags & SMC_WANT_LOGITS)
      return smc_fail(model->error, SMC_BAD_INPUT, "token %d of the batch wants its logits and the largest one: the logits tell", i);
    if (token->flags & SMC_WANT_TOP && !program->finds_top)
      return smc_fail(model->error, SMC_UNSUPPORTED, "token %d of the batch wants its largest logit, which this model's head finds in the logits only", i);
    sequence->pending++;
  }
  return SMC_OK;
}

/* Cosines and sines of position * frequency, the product in float32 as transformers has it. They are rounded from double:
 * C libraries differ in the last bit of cosf, and one model should give one result with all of them. */
static void fill_rope(const smc_model *model, const smc_token *tokens, int32_t count) {
  const struct smc_program *program = model->program;
  const int32_t pairs = program->rope_pairs;
  float *out = model->rope;
  for (int32_t table = 0; table < program->rope_tables; table++)
    for (int32_t i = 0; i < count; i++, out += 2 * pairs)
      for (int32_t pair = 0; pair < pairs; pair++) {
        const float angle = (float)tokens[i].position * program->rope_inverse_frequencies[table * pairs + pair];
        out[pair] = (float)cos((double)angle);
        out[pairs + pair] = (float)sin((double)angle);
      }
}

/* Into how many blocks attention over `longest` cached tokens is split: where sequences are few and long, threads would
 * wait for the one with the most heads. The results are the same bits. */
static int32_t choose_splits(const smc_model *model, const struct smc_step *step, int32_t longest) {
  const int32_t splits = splits_for(longest);
  const int64_t blocks = (int64_t)step->tile_count * model->program->kv_heads;
  const int few = blocks < (int64_t)model->pool->threads * BLOCKS_PER_THREAD;
  return few && (int64_t)step->count * splits <= model->partial_count ? splits : 1;
}

/* Fills the step's tables for as many of the tokens as go into one step; returns how many. */
static int32_t fill_step(smc_model *model, struct smc_step *step, const smc_token *tokens, int32_t count, int32_t most_logits) {
  const struct smc_kv_cache *cache = &model->cache;
  if (count > model->program->max_step_tokens) count = model->program->max_step_tokens;
  int32_t longest = 0;
  step->tile_count = step->logits_count = step->top_count = step->count = 0;
  step->alone = 1;
  for (; step->count < count; step->count++) {
    const smc_token *token = &tokens[step->count];
    const int32_t i = step->count, table = token->sequence * cache->table_pages;
    if (token->flags & SMC_WANT_LOGITS) {
      if (step->logits_count == most_logits) break;
      model->logits_tokens[step->logits_count++] = i;
    }
    if (token->flags & SMC_WANT_TOP) {
      if (step->top_count == MOST_TOPS) break;
      model->top_tokens[step->top_count++] = i;
    }
    model->tokens[i] = token->token;
    model->cache_slots[i] = cache->tables[table + token->index / SMC_PAGE_TOKENS] * SMC_PAGE_TOKENS + token->index % SMC_PAGE_TOKENS;
    const int first = i == 0 || token[-1].sequence != token->sequence;
    if (first || model->tiles[step->tile_count - 1].count == SMC_TILE_TOKENS) {
      step->alone &= first;
      model->tiles[step->tile_count++] = (struct smc_tile){.token = i, .count = 0, .table = table, .index = token->index};
    }
    model->tiles[step->tile_count - 1].count++;
    if (token->index >= longest) longest = token->index + 1;
  }
  step->splits = choose_splits(model, step, longest);
  fill_rope(model, tokens, step->count);
  return step->count;
}

static int run_batch(smc_model *model, const smc_batch *batch) {
  const struct smc_program *program = model->program;
  const uint64_t stride = (uint64_t)program->logits_stride;
  const int direct = (uintptr_t)batch->logits % ALIGNMENT == 0;
  if (!direct && !model->bounce) {
    void *memory;
    if (posix_memalign(&memory, ALIGNMENT, BOUNCE_ROWS * stride * sizeof(float)))
      return smc_fail(model->error, SMC_NO_MEMORY, "cannot allocate a buffer for logits");
    model->bounce = memory;
  }
  struct smc_job job = {
      .run = program->run, .scratch = model->scratch, .scratch_stride = model->scratch_stride, .cancel = &model->cancel,
      .profile = model->profiler.on ? model->profiler.times : NULL,
      .step = {.kv_dtype = model->cache.kv_dtype, .tokens = model->tokens, .rope = model->rope,
               .cache_slots = model->cache_slots, .tiles = model->tiles, .tables = model->cache.tables, .partials = model->partials,
               .logits_tokens = model->logits_tokens, .top_tokens = model->top_tokens, .tops = model->tops, .weights = model->artifact.weights, .arena = model->arena,
               .kv = model->cache.data, .kv_page_bytes = model->cache.page_bytes, .kernels = model->level->kernels}};
  struct smc_step *step = &job.step;
  float *logits = batch->logits, *hidden = batch->hidden;
  int32_t *top = batch->top;
  for (int32_t begin = 0; begin < batch->count;) {
    const smc_token *tokens = batch->tokens + begin;
    begin += fill_step(model, step, tokens, batch->count - begin, direct ? INT32_MAX : BOUNCE_ROWS);
    step->logits = direct ? logits : model->bounce;
    smc_top_clear(step, model->pool->threads);
    if (model->profiler.on) smc_profile_count(&model->profiler, step);
    if (smc_pool_run(model->pool, &job)) return smc_fail(model->error, SMC_CANCELLED, "the step was cancelled");
    if (!direct) memcpy(logits, model->bounce, (uint64_t)step->logits_count * stride * sizeof(float));
    logits += (uint64_t)step->logits_count * stride;
    for (int32_t i = 0; i < step->top_count; i++) *top++ = smc_top_of(step, model->pool->threads, i);
    const float *states = (const float *)(const void *)(model->arena + program->hidden_offset);
    for (int32_t i = 0; i < step->count; i++) {
      if (!(tokens[i].flags & SMC_WANT_HIDDEN)) continue;
      memcpy(hidden, states + (uint64_t)i * program->hidden_stride, (uint64_t)program->hidden_size * sizeof(float));
      hidden += program->hidden_size;
    }
  }
  return SMC_OK;
}

static int check_process(smc_model *model) {
  if (model->pool->process == getpid()) return SMC_OK;
  return smc_fail(model->error, SMC_FAILED, "the process was forked after the model was opened: open it again in the child");
}

static int model_step(smc_model *model, const smc_batch *batch) {
  if (!model) return SMC_BAD_INPUT;
  pthread_mutex_lock(&model->mutex);
  atomic_store(&model->cancel, 0);
  int status = check_process(model);
  const int profiled = !status && model->profiler.on;
  if (profiled) {
    smc_pool_await(model->pool); /* who leaves late still counts */
    smc_profile_step_begin(&model->profiler);
  }
  if (!status) status = check_batch(model, batch);
  if (!status) status = smc_kv_reserve(&model->cache, model->error);
  if (!status) status = run_batch(model, batch);
  smc_kv_finish(&model->cache, status == SMC_OK);
  if (profiled) smc_profile_step_end(&model->profiler);
  pthread_mutex_unlock(&model->mutex);
  return status;
}

static void model_cancel(smc_model *model) {
  if (model) atomic_store(&model->cancel, 1);
}

/* ---- sequences: a lock and a check around kv_cache.c */

/* Locks the model and checks the sequence; `leave` unlocks. The API's const models are ours to write errors to. */
static int enter(const smc_model *model, int32_t sequence, smc_model **writable) {
  if (!model) return SMC_BAD_INPUT;
  *writable = (smc_model *)(uintptr_t)model;
  pthread_mutex_lock(&(*writable)->mutex);
  const int status = smc_kv_check(&model->cache, sequence, (*writable)->error);
  if (status) pthread_mutex_unlock(&(*writable)->mutex);
  return status;
}

static int leave(smc_model *model, int status) {
  pthread_mutex_unlock(&model->mutex);
  return status;
}

static int sequence_create(smc_model *model) {
  if (!model) return SMC_BAD_INPUT;
  pthread_mutex_lock(&model->mutex);
  return leave(model, smc_kv_create(&model->cache, model->error));
}

static int sequence_fork(smc_model *model, int32_t sequence) {
  const int status = enter(model, sequence, &model);
  return status ? status : leave(model, smc_kv_fork(&model->cache, sequence, model->error));
}

static int sequence_truncate(smc_model *model, int32_t sequence, int32_t length) {
  const int status = enter(model, sequence, &model);
  if (status) return status;
  const int32_t now = model->cache.sequences[sequence].length;
  if (length < 0 || length > now)
    return leave(model, smc_fail(model->error, SMC_BAD_INPUT, "sequence %d has %d tokens: it cannot be truncated to %d", sequence, now, length));
  smc_kv_truncate(&model->cache, sequence, length);
  return leave(model, SMC_OK);
}

static int sequence_drop(smc_model *model, int32_t sequence) {
  const int status = enter(model, sequence, &model);
  if (status) return status;
  smc_kv_drop(&model->cache, sequence);
  return leave(model, SMC_OK);
}

static int sequence_length(const smc_model *model, int32_t sequence) {
  smc_model *locked;
  const int status = enter(model, sequence, &locked);
  return status ? status : leave(locked, locked->cache.sequences[sequence].length);
}

static int sequence_save(const smc_model *model, int32_t sequence, void *buffer, uint64_t *size) {
  smc_model *locked;
  const int status = enter(model, sequence, &locked);
  if (status) return status;
  if (!size) return leave(locked, smc_fail(locked->error, SMC_BAD_INPUT, "sequence_save was called without a size"));
  return leave(locked, smc_kv_save(&locked->cache, sequence, buffer, size, locked->error));
}

static int sequence_restore(smc_model *model, const void *buffer, uint64_t size) {
  if (!model) return SMC_BAD_INPUT;
  pthread_mutex_lock(&model->mutex);
  if (!buffer) return leave(model, smc_fail(model->error, SMC_BAD_INPUT, "sequence_restore was called without bytes"));
  return leave(model, smc_kv_restore(&model->cache, buffer, size, model->error));
}

/* ---- profiles */

static int profile_start(smc_model *model) {
  if (!model) return SMC_BAD_INPUT;
  pthread_mutex_lock(&model->mutex);
  int status = check_process(model);
  if (!status) {
    smc_pool_await(model->pool);
    status = smc_profile_start(&model->profiler, model->program, model->pool->threads);
    if (status) smc_fail(model->error, status, "cannot allocate a profile");
  }
  return leave(model, status);
}

static int profile_stop(smc_model *model, smc_profile *profile) {
  if (!model) return SMC_BAD_INPUT;
  pthread_mutex_lock(&model->mutex);
  if (!profile || profile->size != sizeof *profile)
    return leave(model, smc_fail(model->error, SMC_BAD_INPUT, "profile_stop was called without a profile of this engine's size"));
  if (!model->profiler.on) return leave(model, smc_fail(model->error, SMC_BAD_INPUT, "profile_stop was called where no profile is taken"));
  const int status = check_process(model);
  if (status) return leave(model, status);
  smc_pool_await(model->pool);
  smc_profile_stop(&model->profiler, profile);
  return leave(model, SMC_OK);
}

static int limits(smc_model *model, smc_limits *limits) {
  if (!model) return SMC_BAD_INPUT;
  pthread_mutex_lock(&model->mutex);
  if (!limits || limits->size != sizeof *limits || limits->threads < 1 || limits->threads > model->pool->threads)
    return leave(model, smc_fail(model->error, SMC_BAD_INPUT, "limits needs a struct of this engine's size, with 1 to %d threads", model->pool->threads));
  int status = check_process(model);
  if (status) return leave(model, status);
  status = smc_measure_limits(model->pool, model->level, model->artifact.weights, model->program->weight_bytes, limits);
  if (status) smc_fail(model->error, status, "cannot allocate the buffer that the memory's speed is measured with");
  return leave(model, status);
}

/* ---- the table */

static int pool_create(int32_t threads, smc_pool **pool) { return pool ? smc_pool_create(threads, pool) : SMC_BAD_INPUT; }

__attribute__((visibility("default"))) const smc_engine_api smc_engine = {
    .abi_version = SMC_ABI_VERSION,
    .size = sizeof(smc_engine_api),
    .pool_create = pool_create,
    .pool_destroy = smc_pool_destroy,
    .open = model_open,
    .close = model_close,
    .error = model_error,
    .info = model_info,
    .step = model_step,
    .cancel = model_cancel,
    .sequence_create = sequence_create,
    .sequence_fork = sequence_fork,
    .sequence_truncate = sequence_truncate,
    .sequence_drop = sequence_drop,
    .sequence_length = sequence_length,
    .sequence_save = sequence_save,
    .sequence_restore = sequence_restore,
    .profile_start = profile_start,
    .profile_stop = profile_stop,
    .limits = limits,
};
