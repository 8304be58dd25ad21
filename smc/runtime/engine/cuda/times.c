/* Profiles on a GPU: every phase is a launch, and the time between the events before and behind it goes to its tasks.
 */
#include "gpu.h"

#include <stdlib.h>

int smc_times_reserve(struct smc_device *device, uint32_t phases) {
  if (phases <= device->timed) return 1;
  uint32_t *tasks = realloc(device->phase_tasks, phases * sizeof *tasks);
  if (tasks) device->phase_tasks = tasks;
  cuda_event *events = realloc(device->events, 2 * phases * sizeof *events);
  if (events) device->events = events;
  if (!tasks || !events) return 0;
  for (; device->timed < phases; device->timed++)
    for (uint32_t i = 2 * device->timed; i < 2 * device->timed + 2; i++)
      if (smc_device_failed(device, device->driver->event_create(&device->events[i], 0))) return 0;
  return 1;
}

void smc_times_close(struct smc_device *device) {
  for (uint32_t i = 0; i < 2 * device->timed; i++) device->driver->event_destroy(device->events[i]);
  free(device->events);
  free(device->phase_tasks);
}

static void record(struct smc_device *device, cuda_event event) {
  if (!device->broken) smc_device_failed(device, device->driver->event_record(event, device->stream));
}

void smc_times_begin(struct smc_device *device, uint32_t phase) { record(device, device->events[2 * phase]); }

void smc_times_end(struct smc_device *device, uint32_t phase) {
  record(device, device->events[2 * phase + 1]);
  const cuda_pointer tasks = device->tables + offsetof(struct smc_control, tasks);
  if (!device->broken)
    smc_device_failed(device,
                      device->driver->copy_out(&device->phase_tasks[phase], tasks, sizeof(uint32_t), device->stream));
}

/* What a task moves in a step of so many tokens, but for the cache; never 0. */
static double moved(const struct smc_task *task, int32_t tokens) {
  const uint64_t bytes = task->all.weight_bytes + task->wanted.weight_bytes;
  return 1.0 + (double)bytes + (double)tokens * (double)(task->all.token_bytes + task->wanted.token_bytes);
}

void smc_times_add(struct smc_device *device, struct smc_profiler *profiler, uint32_t phases, int32_t tokens) {
  for (uint32_t i = 0; i < phases; i++) {
    const int32_t first = (int32_t)(device->phase_tasks[i] & 0xffff), count = (int32_t)(device->phase_tasks[i] >> 16);
    const struct smc_task *tasks = profiler->program->tasks + first;
    float milliseconds = 0;
    double all = 0;
    if (device->driver->event_milliseconds(&milliseconds, device->events[2 * i], device->events[2 * i + 1])) continue;
    for (int32_t t = 0; t < count; t++) all += moved(&tasks[t], tokens);
    for (int32_t t = 0; t < count; t++)
      smc_profile_add(profiler, first + t, 1e-3 * (double)milliseconds * moved(&tasks[t], tokens) / all);
  }
}
