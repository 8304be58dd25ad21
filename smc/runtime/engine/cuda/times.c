/* Profiles on a GPU: every phase is a launch, and the time between the events before and behind it goes to its tasks.
 */
#include "gpu.h"

#include <stdlib.h>

int smc_times_open(struct smc_device *device) {
  if (device->events) return 0;
  const struct smc_driver *driver = device->driver;
  cuda_event *events = calloc(SMC_MOST_PHASES + 1, sizeof *events);
  device->phases = malloc(SMC_MOST_PHASES * sizeof *device->phases);
  device->events = events;
  if (!events || !device->phases) return 1;
  return driver->allocate(&device->phase_tasks, SMC_MOST_PHASES * sizeof *device->phases);
}

void smc_times_close(struct smc_device *device) {
  for (uint32_t i = 0; device->events && i <= SMC_MOST_PHASES && device->events[i]; i++)
    device->driver->event_destroy(device->events[i]);
  if (device->phase_tasks) device->driver->release(device->phase_tasks);
  free(device->events);
  free(device->phases);
}

void smc_times_mark(struct smc_device *device, uint32_t phase) {
  cuda_event *event = &device->events[phase];
  if (phase > SMC_MOST_PHASES || device->broken) return;
  if (!*event) smc_device_failed(device, device->driver->event_create(event, 0));
  if (!device->broken) smc_device_failed(device, device->driver->event_record(*event, device->stream));
}

/* What a task moves in a step of so many tokens, but for the cache; never 0. */
static double moved(const struct smc_task *task, int32_t tokens) {
  const uint64_t bytes = task->all.weight_bytes + task->wanted.weight_bytes;
  return 1.0 + (double)bytes + (double)tokens * (double)(task->all.token_bytes + task->wanted.token_bytes);
}

void smc_times_add(struct smc_device *device, struct smc_profiler *profiler, uint32_t phases, int32_t tokens) {
  const uint32_t count = phases < SMC_MOST_PHASES ? phases : SMC_MOST_PHASES;
  for (uint32_t i = 0; i < count; i++) {
    const struct smc_phase_tasks phase = device->phases[i];
    const struct smc_task *tasks = profiler->program->tasks + phase.first;
    float milliseconds = 0;
    double all = 0;
    if (device->driver->event_milliseconds(&milliseconds, device->events[i], device->events[i + 1])) continue;
    for (int32_t t = 0; t < phase.count; t++) all += moved(&tasks[t], tokens);
    for (int32_t t = 0; t < phase.count; t++)
      smc_profile_add(profiler, phase.first + t, 1e-3 * (double)milliseconds * moved(&tasks[t], tokens) / all);
  }
}
