/* The CPU as a device: threads of a pool, and the process's own memory. */
#include "../internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BOUNCE_ROWS 32 /* rows of logits that pass through our buffer if the caller's is not aligned */
#if defined(__APPLE__)
#define GIVE_BACK MADV_FREE
#else
#define GIVE_BACK MADV_DONTNEED
#endif

int smc_device_level(const struct smc_program *program, const char *asked, const struct smc_level **level,
                     char *error) {
  char missing[256] = "", names[256] = "";
  for (int32_t i = 0; i < program->level_count; i++) {
    const struct smc_level *candidate = &program->levels[i];
    snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "", candidate->name);
    if (asked && strcmp(asked, candidate->name)) continue;
    missing[0] = 0; /* at the end: the features that the lowest level lacks */
    if (!smc_cpu_missing(candidate->features, missing, sizeof missing)) {
      *level = candidate;
      return SMC_OK;
    }
    if (asked) return smc_fail(error, SMC_UNSUPPORTED, "this CPU can't run level %s: it lacks %s", asked, missing);
  }
  if (asked) return smc_fail(error, SMC_BAD_INPUT, "the artifact has no level '%s': it has %s", asked, names);
  return smc_fail(error, SMC_UNSUPPORTED, "this CPU has none of the artifact's levels (%s): it lacks %s", names,
                  missing);
}

int32_t smc_device_pool_threads(int32_t asked) { return asked; }

int smc_device_open(smc_model *model, char *error) {
  model->workers = model->pool->threads;
  return smc_weights_to_huge_pages(&model->artifact, model->workers, error);
}

void smc_device_close(smc_model *model) { (void)model; }

/* ---- the cache */

void smc_pages_note(const struct smc_device *device, char *text, size_t size) {
  (void)device, (void)size;
  text[0] = 0;
}

uint8_t *smc_pages_reserve(struct smc_device *device, uint64_t bytes) {
  (void)device;
  void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) return NULL;
  smc_advise_huge_pages(data, bytes);
  return data;
}

void smc_pages_free(struct smc_device *device, uint8_t *pages, uint64_t bytes) {
  (void)device;
  munmap(pages, bytes);
}

void smc_pages_give_back(struct smc_device *device, uint8_t *page, uint64_t bytes) {
  (void)device;
  const uintptr_t unit = (uintptr_t)getpagesize(), begin = (uintptr_t)page;
  const uintptr_t first = (uintptr_t)smc_round_up(begin, unit), last = (uintptr_t)(begin + bytes) / unit * unit;
  if (last > first) (void)madvise(page + (first - begin), last - first, GIVE_BACK);
}

uint64_t smc_pages_available(const struct smc_device *device, uint64_t enough) {
  (void)device;
  return smc_available_memory(enough);
}

void smc_pages_copy(struct smc_device *device, uint8_t *to, const uint8_t *from, uint64_t bytes) {
  (void)device;
  memcpy(to, from, bytes);
}

int smc_pages_read(struct smc_device *device, void *to, const uint8_t *from, uint64_t bytes, char *error) {
  (void)device, (void)error;
  memcpy(to, from, bytes);
  return SMC_OK;
}

int smc_pages_write(struct smc_device *device, uint8_t *to, const void *from, uint64_t bytes, char *error) {
  (void)device, (void)error;
  memcpy(to, from, bytes);
  return SMC_OK;
}

/* ---- steps */

int smc_device_allocate(smc_model *model, char *error) {
  const struct smc_program *program = model->program;
  model->scratch_stride = smc_round_up(program->thread_scratch_bytes, SMC_CACHE_LINE);
  const uint64_t scratch = smc_round_up(program->arena_bytes, SMC_CACHE_LINE);
  const uint64_t partials = scratch + model->scratch_stride * (uint64_t)model->workers;
  const uint64_t bytes = partials + (uint64_t)model->partial_count * program->partial_bytes;
  if (bytes > smc_available_memory(bytes))
    return smc_fail(error, SMC_NO_MEMORY, "there are less than %.0f MiB of memory left, which the activations need",
                    (double)bytes / (1 << 20));
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    return smc_fail(error, SMC_NO_MEMORY, "can't allocate %llu bytes for activations", (unsigned long long)bytes);
  smc_advise_huge_pages(memory, bytes);
  model->arena = memory;
  model->arena_bytes = bytes;
  model->memory_bytes += bytes;
  model->scratch = model->arena + scratch;
  model->partials = (float *)(void *)(model->arena + partials);
  return SMC_OK;
}

void smc_device_release(smc_model *model) {
  if (model->arena) munmap(model->arena, model->arena_bytes);
}

int32_t smc_device_most_logits(int aligned) { return aligned ? INT32_MAX : BOUNCE_ROWS; }

int smc_device_run(smc_model *model, struct smc_step *step, uint32_t cancels, char *error) {
  step->weights = model->artifact.weights;
  step->arena = model->arena;
  step->partials = model->partials;
  struct smc_job job = {.run = model->program->run,
                        .scratch = model->scratch,
                        .scratch_stride = model->scratch_stride,
                        .cancels = &model->cancels,
                        .cancels_seen = cancels,
                        .profile = model->profiler.on ? model->profiler.times : NULL,
                        .step = *step};
  if (smc_pool_run(model->pool, &job)) return smc_fail(error, SMC_CANCELLED, "the step was cancelled");
  return SMC_OK;
}

const float *smc_device_hidden(smc_model *model, const struct smc_step *step) {
  (void)step;
  return (const float *)(const void *)(model->arena + model->program->hidden_offset);
}

int smc_device_limits(smc_model *model, smc_limits *limits, char *error) {
  const int status =
      smc_measure_limits(model->pool, model->level, model->artifact.weights, model->program->weight_bytes, limits);
  return status ? smc_fail(error, status, "can't allocate the buffer that the memory's speed is measured with")
                : SMC_OK;
}

int smc_device_profiles(smc_model *model, char *error) {
  (void)model, (void)error;
  return SMC_OK;
}
