/* Steps on a GPU: the tables of a step go there in one copy, and one launch does all of its phases; if the GPU's blocks
 * can't all wait for each other, every phase is a launch. */
#include "gpu.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOGITS_ROWS 32                 /* rows of logits of a step, at most */
#define MOST_ARGMAXES 64               /* as step.c has it */
#define PATIENCE UINT64_C(20000000000) /* nanoseconds that a block waits for the others before the step fails */
#define ALIGNMENT 128

/* The head of the tables, and the part that is copied back. */
struct head {
  struct smc_control control;
  uint8_t room[128 - sizeof(struct smc_control)];
  int32_t beyond;
  uint8_t more[124];
};

#define STEP_AT sizeof(struct head)

static uint64_t argmax_bytes(const smc_model *model) {
  return (uint64_t)model->workers * MOST_ARGMAXES * sizeof(struct smc_argmax);
}

/* Room for the tables of the longest step. */
static uint64_t most_table_bytes(const smc_model *model) {
  const struct smc_program *program = model->program;
  const struct smc_kv_cache *cache = &model->cache;
  const uint64_t step = (uint64_t)program->max_step_tokens, groups = (uint64_t)cache->group_count;
  uint64_t pairs = 0;
  for (int32_t i = 0; i < program->rope_table_count; i++) pairs += (uint64_t)program->rope_tables[i].pairs;
  const uint64_t tables = groups * (uint64_t)cache->sequence_count * (uint64_t)cache->table_pages * sizeof(int32_t);
  const uint64_t tokens =
      step * ((5 + groups) * sizeof(int32_t) + 2 * pairs * sizeof(float) + 2 * sizeof(struct smc_tile));
  return 4096 + (16 + 2 * groups) * ALIGNMENT + tables + tokens + groups * sizeof(struct smc_kv_pages);
}

int smc_device_allocate(smc_model *model, char *error) {
  struct smc_device *device = model->device;
  const struct smc_driver *driver = device->driver;
  const struct smc_program *program = model->program;
  const uint64_t arena = smc_round_up(program->arena_bytes, ALIGNMENT),
                 partials = (uint64_t)model->partial_count * program->partial_bytes;
  const uint64_t logits = (uint64_t)LOGITS_ROWS * (uint64_t)program->logits_stride * sizeof(float);
  device->table_bytes = smc_round_up(most_table_bytes(model), ALIGNMENT);
  device->work_bytes = arena + smc_round_up(partials, ALIGNMENT) + smc_round_up(logits, ALIGNMENT) +
                       smc_round_up(argmax_bytes(model), ALIGNMENT) + device->table_bytes;
  void *packed = NULL, *word = NULL;
  smc_device_enter(device);
  const int status = driver->allocate(&device->work, device->work_bytes) ||
                     driver->host_allocate(&packed, device->table_bytes, 0) ||
                     driver->host_allocate(&word, sizeof(uint32_t), CUDA_HOST_MAPPED) ||
                     driver->host_pointer(&device->cancels, word, 0);
  device->packed = packed;
  smc_device_leave(device);
  if (status) return smc_device_no_room(device, "activations", device->work_bytes, error);
  model->arena = (uint8_t *)(uintptr_t)device->work;
  model->arena_bytes = device->work_bytes;
  model->memory_bytes += device->work_bytes;
  model->partials = (float *)(void *)(model->arena + arena);
  device->logits = device->work + arena + smc_round_up(partials, ALIGNMENT);
  device->argmaxes = device->logits + smc_round_up(logits, ALIGNMENT);
  device->tables = device->argmaxes + smc_round_up(argmax_bytes(model), ALIGNMENT);
  model->cancels_word = (_Atomic uint32_t *)word;
  return SMC_OK;
}

void smc_device_release(smc_model *model) {
  struct smc_device *device = model->device;
  if (!device || !device->context || model->process != getpid()) return;
  smc_device_enter(device);
  if (device->work) device->driver->release(device->work);
  if (device->packed) device->driver->host_release(device->packed);
  smc_times_close(device);
  if (model->cancels_word) device->driver->host_release((void *)model->cancels_word);
  smc_device_leave(device);
}

int32_t smc_device_most_logits(int aligned) {
  (void)aligned;
  return LOGITS_ROWS;
}

/* ---- tables: packed one after the other, and what points to them says where they will be on the device */

struct pack {
  struct smc_device *device;
  uint64_t used;
};

static void *put(struct pack *pack, const void *data, uint64_t bytes) {
  const uint64_t place = pack->used;
  memcpy(pack->device->packed + place, data, bytes);
  pack->used = smc_round_up(place + bytes, ALIGNMENT);
  return (void *)(uintptr_t)(pack->device->tables + place);
}

/* The head, the step, and the tables behind it; returns how many bytes go to the device. */
static uint64_t pack_tables(smc_model *model, const struct smc_step *given, const struct head *head) {
  struct smc_device *device = model->device;
  const struct smc_kv_cache *cache = &model->cache;
  const struct smc_program *program = model->program;
  struct smc_step step = *given;
  struct pack pack = {device, STEP_AT + smc_round_up(sizeof step, ALIGNMENT)};
  const uint64_t count = (uint64_t)step.count;
  uint64_t pairs = 0;
  for (int32_t i = 0; i < program->rope_table_count; i++) pairs += (uint64_t)program->rope_tables[i].pairs;
  struct smc_kv_pages kv[SMC_MAX_KV_GROUPS];
  for (int32_t i = 0; i < cache->group_count; i++) {
    kv[i] = step.kv[i];
    kv[i].tables =
        put(&pack, kv[i].tables, (uint64_t)cache->sequence_count * (uint64_t)cache->table_pages * sizeof(int32_t));
    kv[i].slots = put(&pack, kv[i].slots, count * sizeof(int32_t));
  }
  step.kv = put(&pack, kv, (uint64_t)cache->group_count * sizeof *kv);
  step.tokens = put(&pack, step.tokens, count * sizeof(int32_t));
  step.positions = put(&pack, step.positions, count * sizeof(int32_t));
  step.rope = put(&pack, step.rope, count * 2 * pairs * sizeof(float));
  step.tiles = put(&pack, step.tiles, (uint64_t)step.tile_count * sizeof(struct smc_tile));
  step.wanted_tiles = put(&pack, step.wanted_tiles, (uint64_t)step.wanted_tile_count * sizeof(struct smc_tile));
  step.wanted_tokens = put(&pack, step.wanted_tokens, (uint64_t)step.wanted_count * sizeof(int32_t));
  step.logits_tokens = put(&pack, step.logits_tokens, (uint64_t)step.logits_count * sizeof(int32_t));
  step.argmax_tokens = put(&pack, step.argmax_tokens, (uint64_t)step.argmax_count * sizeof(int32_t));
  step.partials = model->partials;
  step.arena = model->arena;
  step.weights = (const uint8_t *)(uintptr_t)device->weights;
  step.logits = (float *)(uintptr_t)device->logits;
  step.beyond = (int32_t *)(uintptr_t)(device->tables + offsetof(struct head, beyond));
  step.argmaxes = (struct smc_argmax *)(uintptr_t)device->argmaxes;
  step.kernels = NULL;
  memcpy(device->packed, head, sizeof *head);
  memcpy(device->packed + STEP_AT, &step, sizeof step);
  return pack.used;
}

/* ---- launches */

static void launch(struct smc_device *device, int32_t blocks, uint32_t first, uint32_t last) {
  cuda_pointer step = device->tables + STEP_AT, control = device->tables;
  void *arguments[] = {&step, &control, &first, &last};
  if (!device->broken)
    smc_device_failed(device, device->driver->launch(device->function, (unsigned)blocks, 1, 1, SMC_BLOCK_THREADS, 1, 1,
                                                     (unsigned)device->shared_bytes, device->stream, arguments, NULL));
}

/* All phases in one launch, whose blocks wait for each other. 0 if the GPU, or software that shares it (MPS, a virtual
 * GPU), refuses such launches: then nothing has run. */
static int launch_resident(struct smc_device *device) {
  cuda_pointer step = device->tables + STEP_AT, control = device->tables;
  uint32_t first = 0, last = UINT32_MAX;
  void *arguments[] = {&step, &control, &first, &last};
  if (device->broken) return 1;
  const int status =
      device->driver->launch_together(device->function, (unsigned)device->blocks, 1, 1, SMC_BLOCK_THREADS, 1, 1,
                                      (unsigned)device->shared_bytes, device->stream, arguments);
  if (status == CUDA_TOO_LARGE || status == CUDA_NOT_SUPPORTED || status == CUDA_NOT_PERMITTED) return 0;
  smc_device_failed(device, status);
  return 1;
}

/* Phase by phase: one block first counts the phases. Not 0 if the step was cancelled. A profile has the times. */
static int launch_phases(smc_model *model, uint32_t cancels) {
  struct smc_device *device = model->device;
  const struct smc_control *control = (const struct smc_control *)(const void *)device->packed;
  launch(device, 1, 0, 0);
  smc_device_failed(device, device->driver->copy_out(device->packed, device->tables, sizeof *control, device->stream));
  smc_device_failed(device, device->driver->stream_wait(device->stream));
  const int timed = model->profiler.on && smc_times_reserve(device, control->phases);
  for (uint32_t phase = 0; phase < control->phases && !device->broken; phase++) {
    if (atomic_load(&model->cancels) != cancels) return 1;
    if (timed) smc_times_begin(device, phase);
    launch(device, device->blocks, phase, phase + 1);
    if (timed) smc_times_end(device, phase);
  }
  return 0;
}

int smc_device_run(smc_model *model, struct smc_step *step, uint32_t cancels, char *error) {
  struct smc_device *device = model->device;
  const struct smc_driver *driver = device->driver;
  struct head begin = {.control = {.stop_at = UINT32_MAX,
                                   .resident = device->resident && !model->profiler.on,
                                   .cancels_seen = cancels,
                                   .cancels = device->cancels,
                                   .patience = PATIENCE}};
  const struct head *end = (const struct head *)(const void *)device->packed;
  if (device->broken) return smc_device_sentence(device, error);
  smc_device_enter(device);
  const uint64_t bytes = pack_tables(model, step, &begin),
                 tops = (uint64_t)model->workers * (uint64_t)step->argmax_count * sizeof(struct smc_argmax);
  int cancelled = 0;
  atomic_store(model->cancels_word, atomic_load(&model->cancels));
  smc_device_failed(device, driver->copy_in(device->tables, device->packed, bytes, device->stream));
  if (begin.control.resident && !launch_resident(device)) {
    device->resident = 0;
    begin.control.resident = 0;
    memcpy(device->packed, &begin, sizeof begin);
    smc_device_failed(device, driver->copy_in(device->tables, device->packed, sizeof begin, device->stream));
  }
  if (!begin.control.resident) cancelled = launch_phases(model, cancels);
  smc_device_failed(device, driver->copy_out(device->packed, device->tables, sizeof *end, device->stream));
  if (step->logits_count)
    smc_device_failed(
        device, driver->copy_out(step->logits, device->logits,
                                 (uint64_t)step->logits_count * (uint64_t)model->program->logits_stride * sizeof(float),
                                 device->stream));
  if (tops) smc_device_failed(device, driver->copy_out(step->argmaxes, device->argmaxes, tops, device->stream));
  smc_device_failed(device, driver->stream_wait(device->stream));
  if (model->profiler.on && !cancelled && !device->broken && end->control.phases <= device->timed)
    smc_times_add(device, &model->profiler, end->control.phases, step->count);
  smc_device_leave(device);
  if (!device->broken && end->control.failure) device->broken = "its CUDA blocks waited for each other without end";
  if (device->broken) return smc_device_sentence(device, error);
  *step->beyond = end->beyond;
  if (cancelled || end->control.stop_at != UINT32_MAX) return smc_fail(error, SMC_CANCELLED, "the step was cancelled");
  return SMC_OK;
}

const float *smc_device_hidden(smc_model *model, const struct smc_step *step) {
  struct smc_device *device = model->device;
  const struct smc_program *program = model->program;
  const uint64_t row = program->hidden_stride * sizeof(float);
  if (!device->hidden) device->hidden = malloc((uint64_t)program->max_step_tokens * row);
  if (!device->hidden) return NULL;
  smc_device_enter(device);
  smc_device_failed(device, device->driver->copy_out(device->hidden, device->work + program->hidden_offset,
                                                     (uint64_t)step->wanted_count * row, device->stream));
  smc_device_failed(device, device->driver->stream_wait(device->stream));
  smc_device_leave(device);
  return device->broken ? NULL : device->hidden;
}
