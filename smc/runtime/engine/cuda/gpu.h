/* A model's state on a GPU, which gpu.c and run.c share. */
#ifndef SMC_GPU_H
#define SMC_GPU_H

#include "../internal.h"
#include "device_program.h"
#include "driver.h"

/* The same struct as in phases.cuh. */
struct smc_control {
  uint32_t arrived, stop_at, failure, phases, resident, cancels_seen;
  cuda_pointer cancels;
  uint64_t patience;
  uint32_t tasks;
};

struct smc_device {
  const struct smc_driver *driver;
  int number; /* the driver's handle of the GPU */
  char name[96];
  cuda_context context;
  cuda_module module;
  cuda_function function;
  cuda_stream stream;
  int resident;   /* one launch a step; else one a phase */
  int32_t blocks; /* of a launch */
  int32_t shared_bytes;
  cuda_pointer weights, work;
  uint64_t work_bytes;
  /* A step's tables: packed here, memory that the GPU may copy from, and their copy. */
  uint8_t *packed;
  cuda_pointer tables;
  uint64_t table_bytes;
  cuda_pointer logits, argmaxes; /* what a step leaves besides the tables' head */
  cuda_pointer cancels;          /* model->cancels_word, at the GPU's address */
  float *hidden;                 /* memory of the host, NULL until it is needed */
  /* Of profiles, for so many phases: each one's tasks (smc_control), an event before it and one behind it. */
  uint32_t timed;
  uint32_t *phase_tasks;
  cuda_event *events;
  const char *broken; /* the driver's sentence after a final failure; NULL: none */
  int lost;           /* a kernel failed, and with it everything in the GPU's context */
};

/* ---- times.c: how long phases take */

int smc_times_reserve(struct smc_device *device, uint32_t phases); /* 0: there is no room for so many */
void smc_times_close(struct smc_device *device);
void smc_times_begin(struct smc_device *device, uint32_t phase);
void smc_times_end(struct smc_device *device, uint32_t phase);
/* Once the step has ended: the times of its phases go to the profile. */
void smc_times_add(struct smc_device *device, struct smc_profiler *profiler, uint32_t phases, int32_t tokens);

/* ---- gpu.c */

/* Makes the device current for the calling thread, and undoes that. Both keep failures in `broken`. */
void smc_device_enter(struct smc_device *device);
void smc_device_leave(struct smc_device *device);
/* Remembers the first failure; returns whether this was one. */
int smc_device_failed(struct smc_device *device, int status);
/* SMC_NO_MEMORY: how much is needed for what, and how much there is. */
int smc_device_no_room(const struct smc_device *device, const char *what, uint64_t bytes, char *error);
int smc_device_sentence(const struct smc_device *device, char *error); /* SMC_FAILED */

#endif
