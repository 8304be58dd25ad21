/* The function table: opens a model; locks it and checks arguments around every call. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_CONTEXT (1 << 24)
#define MAX_SEQUENCES 4096

/* ---- open */

/* 0 stands for `standard`. */
static int count_option(const char *name, int32_t *value, int32_t standard, int32_t limit, char *error) {
  if (*value < 0 || *value > limit)
    return smc_fail(error, SMC_BAD_INPUT, "%s is %d: it must be between 1 and %d, or 0 for the default", name, *value,
                    limit);
  if (*value == 0) *value = standard;
  return SMC_OK;
}

static int check_options(const struct smc_program *program, smc_options *options, char *error) {
  int status;
  if (program->abi_version != SMC_ABI_VERSION)
    return smc_fail(error, SMC_FAILED, "the program was generated for version %u of the engine, which is %d",
                    program->abi_version, SMC_ABI_VERSION);
  if (options->size != sizeof *options)
    return smc_fail(error, SMC_BAD_INPUT, "smc_options has %u bytes where this engine needs %zu", options->size,
                    sizeof *options);
  if (!options->path) return smc_fail(error, SMC_BAD_INPUT, "no artifact is named: options.path is NULL");
  if (options->adapter)
    return smc_fail(error, SMC_BAD_INPUT, "adapters are not supported yet: options.adapter must be NULL");
  if (options->kv_dtype < SMC_KV_F16 || options->kv_dtype > SMC_KV_I8)
    return smc_fail(error, SMC_BAD_INPUT, "kv_dtype is %d: it must be 0 (f16), 1 (f32) or 2 (i8)", options->kv_dtype);
  if ((status = count_option("context_length", &options->context_length, program->context_length, MAX_CONTEXT, error)))
    return status;
  if (program->positions && options->context_length > program->positions)
    return smc_fail(error, SMC_BAD_INPUT,
                    "a context of %d tokens is longer than the %d positions that the model has learned",
                    options->context_length, program->positions);
  if ((status = count_option("sequences", &options->sequences, 1, MAX_SEQUENCES, error))) return status;
  if ((status = count_option("threads", &options->threads, 0, SMC_MAX_THREADS, error))) return status;
  if (options->pool && !smc_pool_valid(options->pool))
    return smc_fail(error, SMC_BAD_INPUT, "options.pool is not a pool of this version of the engine");
  if (options->pool && options->pool->process != getpid())
    return smc_fail(error, SMC_BAD_INPUT,
                    "options.pool has no threads here: the process was forked after it was created");
  return SMC_OK;
}

static void free_model(smc_model *model) {
  if (model->pool && model->process == getpid()) smc_pool_await(model->pool);
  if (model->own_pool) smc_pool_destroy(model->pool);
  smc_profile_close(&model->profiler);
  smc_kv_close(&model->cache);
  smc_step_free(model);
  smc_device_close(model);
  smc_artifact_close(&model->artifact);
  pthread_mutex_destroy(&model->mutex);
  free(model);
}

static int open_parts(smc_model *model, const smc_options *options, char *error) {
  const struct smc_program *program = model->program;
  int status = smc_artifact_open(&model->artifact, options->path, program->weight_bytes, error);
  if (status) return status;
  model->pool = options->pool;
  if (!model->pool) {
    status = smc_pool_create(smc_device_pool_threads(options->threads), &model->pool);
    if (status && options->threads)
      return smc_fail(error, status, "the machine refuses to start %d threads: give fewer", options->threads);
    if (status) return smc_fail(error, status, "the machine refuses to start a thread for every CPU: give fewer");
    model->own_pool = 1;
  }
  if ((status = smc_device_open(model, error))) return status;
  status = smc_kv_open(&model->cache, program, model->device, options->context_length, options->sequences,
                       options->kv_dtype, error);
  return status ? status : smc_step_allocate(model, error);
}

static int model_open(const smc_options *given, smc_model **result, char *error) {
  if (!result || !given) return smc_fail(error, SMC_BAD_INPUT, "smc_engine.open was called with a NULL pointer");
  *result = NULL;
  const struct smc_level *level = NULL;
  smc_options options = {.size = given->size};
  if (given->size == sizeof options) options = *given;
  int status = check_options(&smc_program, &options, error);
  const char *asked = options.level && *options.level ? options.level : getenv("SMC_LEVEL");
  if (!status) status = smc_device_level(&smc_program, asked && *asked ? asked : NULL, &level, error);
  if (status) return status;
  smc_model *model = calloc(1, sizeof *model);
  if (!model) return smc_fail(error, SMC_NO_MEMORY, "can't allocate a model");
  model->program = &smc_program;
  model->level = level;
  model->process = getpid();
  model->prefetch_distance = smc_prefetch_distance();
  pthread_mutex_init(&model->mutex, NULL);
  if ((status = open_parts(model, &options, error))) {
    free_model(model);
    return status;
  }
  if (options.log) {
    char sentence[SMC_ERROR_BYTES];
    snprintf(sentence, sizeof sentence, "%s: level %s, %d threads, context %d%s", smc_program.name, level->name,
             model->pool->threads, options.context_length,
             options.context_length > smc_program.context_length ? ", which is more than it was trained for" : "");
    options.log(options.log_user, sentence);
  }
  *result = model;
  return SMC_OK;
}

/* ---- calls: every one is between enter and leave */

static int leave(smc_model *model, int status) {
  pthread_mutex_unlock(&model->mutex);
  atomic_fetch_sub(&model->callers, 1); /* the last action: after it, close may free the model */
  return status;
}

/* Locks the model until `leave`, or explains why it can't. In a forked child, a thread that does not exist there may
 * hold the lock. The API's const models may be locked. */
static int enter(const smc_model *model, smc_model **locked, char *error) {
  if (!model) return smc_fail(error, SMC_BAD_INPUT, "the model is NULL");
  if (model->process != getpid())
    return smc_fail(error, SMC_FAILED, "the process was forked after the model was opened: open it again in the child");
  smc_model *own = *locked = (smc_model *)(uintptr_t)model;
  atomic_fetch_add(&own->callers, 1);
  pthread_mutex_lock(&own->mutex);
  if (!atomic_load(&own->closing)) return SMC_OK;
  return leave(own, smc_fail(error, SMC_CANCELLED, "the model is being closed"));
}

static void model_cancel(smc_model *model) {
  if (!model) return;
  const uint32_t cancels = atomic_fetch_add(&model->cancels, 1) + 1;
  if (model->cancels_word) atomic_store(model->cancels_word, cancels);
}

static uint32_t model_cancels(const smc_model *model) { return model ? atomic_load(&model->cancels) : 0; }

static void model_close(smc_model *model) {
  if (!model) return;
  if (model->process == getpid()) { /* a forked child has no callers: those that are counted are the parent's */
    atomic_store(&model->closing, 1);
    model_cancel(model);
    pthread_mutex_lock(&model->mutex); /* waits for the running call without spinning */
    pthread_mutex_unlock(&model->mutex);
    for (int turns = 0; atomic_load(&model->callers); turns++) smc_relax(turns);
  }
  free_model(model);
}

static int model_info(const smc_model *model, smc_info *info, char *error) {
  smc_model *locked;
  const int status = enter(model, &locked, error);
  if (status) return status;
  if (!info || info->size != sizeof *info)
    return leave(locked, smc_fail(error, SMC_BAD_INPUT, "info needs a struct of this engine's size"));
  const struct smc_program *program = model->program;
  const struct smc_kv_cache *cache = &model->cache;
  *info = (smc_info){.size = sizeof *info,
                     .layers = program->layers,
                     .vocab_size = program->vocab_size,
                     .hidden_size = program->hidden_size,
                     .logits_stride = program->logits_stride,
                     .context_length = cache->context_length,
                     .sequences = cache->sequence_count,
                     .threads = model->pool->threads,
                     .kv_dtype = cache->kv_dtype,
                     .max_step_tokens = program->max_step_tokens,
                     .finds_argmax = program->finds_argmax,
                     .kv_page_tokens = SMC_PAGE_TOKENS,
                     .name = program->name,
                     .level = model->level->name,
                     .weight_bytes = model->artifact.weight_bytes,
                     .token_weight_bytes = program->token_weight_bytes,
                     .kv_bytes_per_token = smc_kv_bytes_per_token(cache),
                     .kv_bytes_used = smc_kv_bytes_used(cache),
                     .activation_bytes = model->memory_bytes};
  return leave(locked, SMC_OK);
}

static int model_step(smc_model *model, const smc_batch *batch, char *error) {
  const int status = enter(model, &model, error);
  return status ? status : leave(model, smc_step_batch(model, batch, error));
}

/* ---- sequences: a lock and a check around kv_cache.c */

/* Enters the model and checks the sequence. */
static int enter_sequence(const smc_model *model, int32_t sequence, smc_model **locked, char *error) {
  int status = enter(model, locked, error);
  if (status) return status;
  status = smc_kv_check(&model->cache, sequence, error);
  return status ? leave(*locked, status) : SMC_OK;
}

static int sequence_create(smc_model *model, char *error) {
  const int status = enter(model, &model, error);
  return status ? status : leave(model, smc_kv_create(&model->cache, error));
}

static int sequence_fork(smc_model *model, int32_t sequence, char *error) {
  const int status = enter_sequence(model, sequence, &model, error);
  return status ? status : leave(model, smc_kv_fork(&model->cache, sequence, error));
}

static int sequence_truncate(smc_model *model, int32_t sequence, int32_t length, char *error) {
  const int status = enter_sequence(model, sequence, &model, error);
  if (status) return status;
  const int32_t now = model->cache.sequences[sequence].length;
  if (length < 0 || length > now)
    return leave(model, smc_fail(error, SMC_BAD_INPUT, "sequence %d has %d tokens: it can't be truncated to %d",
                                 sequence, now, length));
  if (length < now) smc_kv_shorten(&model->cache, sequence, length);
  return leave(model, SMC_OK);
}

static int sequence_drop(smc_model *model, int32_t sequence, char *error) {
  const int status = enter_sequence(model, sequence, &model, error);
  if (status) return status;
  smc_kv_drop(&model->cache, sequence);
  return leave(model, SMC_OK);
}

static int sequence_length(const smc_model *model, int32_t sequence, char *error) {
  smc_model *locked;
  const int status = enter_sequence(model, sequence, &locked, error);
  return status ? status : leave(locked, locked->cache.sequences[sequence].length);
}

static int sequence_save(const smc_model *model, int32_t sequence, void *buffer, uint64_t *size, char *error) {
  smc_model *locked;
  const int status = enter_sequence(model, sequence, &locked, error);
  if (status) return status;
  if (!size) return leave(locked, smc_fail(error, SMC_BAD_INPUT, "sequence_save was called without a size"));
  return leave(locked, smc_kv_save(&locked->cache, sequence, buffer, size, error));
}

static int sequence_restore(smc_model *model, const void *buffer, uint64_t size, char *error) {
  const int status = enter(model, &model, error);
  if (status) return status;
  if (!buffer) return leave(model, smc_fail(error, SMC_BAD_INPUT, "sequence_restore was called without bytes"));
  return leave(model, smc_kv_restore(&model->cache, buffer, size, error));
}

/* ---- profiles */

static int profile_start(smc_model *model, char *error) {
  int status = enter(model, &model, error);
  if (status) return status;
  if ((status = smc_device_profiles(model, error))) return leave(model, status);
  smc_pool_await(model->pool);
  status = smc_profile_start(&model->profiler, model->program, smc_device_pool_threads(model->pool->threads));
  return leave(model, status ? smc_fail(error, status, "can't allocate a profile") : SMC_OK);
}

static int profile_stop(smc_model *model, smc_profile *profile, char *error) {
  const int status = enter(model, &model, error);
  if (status) return status;
  if (!profile || profile->size != sizeof *profile)
    return leave(model,
                 smc_fail(error, SMC_BAD_INPUT, "profile_stop was called without a profile of this engine's size"));
  if (!model->profiler.on)
    return leave(model, smc_fail(error, SMC_BAD_INPUT, "profile_stop was called without profile_start"));
  smc_pool_await(model->pool);
  smc_profile_stop(&model->profiler, profile);
  return leave(model, SMC_OK);
}

static int limits(smc_model *model, smc_limits *limits, char *error) {
  int status = enter(model, &model, error);
  if (status) return status;
  if (!limits || limits->size != sizeof *limits || limits->threads < 1 || limits->threads > model->pool->threads)
    return leave(model,
                 smc_fail(error, SMC_BAD_INPUT, "limits needs a struct of this engine's size, with 1 to %d threads",
                          model->pool->threads));
  return leave(model, smc_device_limits(model, limits, error));
}

/* ---- the table */

static int pool_create(int32_t threads, smc_pool **pool) {
  return pool ? smc_pool_create(threads, pool) : SMC_BAD_INPUT;
}

__attribute__((visibility("default"))) const smc_engine_api smc_engine = {
    .abi_version = SMC_ABI_VERSION,
    .size = sizeof(smc_engine_api),
    .pool_create = pool_create,
    .pool_destroy = smc_pool_destroy,
    .open = model_open,
    .close = model_close,
    .info = model_info,
    .step = model_step,
    .cancel = model_cancel,
    .cancels = model_cancels,
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
