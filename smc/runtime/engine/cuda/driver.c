/* Finds the CUDA driver's functions by name. */
#include "../internal.h"
#include "driver.h"

#include <dlfcn.h>
#include <string.h>

#define LIBRARY "libcuda.so.1"
#define LEAST_VERSION 12000 /* drivers from 525 on: what CUDA 12's machine code needs */

static struct smc_driver functions;
static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;
static int opened;

static const struct {
  const char *name;
  size_t place;
} names[] = {
    {"cuInit", offsetof(struct smc_driver, init)},
    {"cuDriverGetVersion", offsetof(struct smc_driver, version)},
    {"cuDeviceGetCount", offsetof(struct smc_driver, device_count)},
    {"cuDeviceGet", offsetof(struct smc_driver, device)},
    {"cuDeviceGetName", offsetof(struct smc_driver, device_name)},
    {"cuDeviceGetAttribute", offsetof(struct smc_driver, device_attribute)},
    {"cuDevicePrimaryCtxRetain", offsetof(struct smc_driver, context_retain)},
    {"cuDevicePrimaryCtxRelease_v2", offsetof(struct smc_driver, context_release)},
    {"cuDevicePrimaryCtxReset_v2", offsetof(struct smc_driver, context_reset)},
    {"cuCtxPushCurrent_v2", offsetof(struct smc_driver, context_push)},
    {"cuCtxPopCurrent_v2", offsetof(struct smc_driver, context_pop)},
    {"cuModuleLoadData", offsetof(struct smc_driver, module_load)},
    {"cuModuleUnload", offsetof(struct smc_driver, module_unload)},
    {"cuModuleGetFunction", offsetof(struct smc_driver, module_function)},
    {"cuFuncSetAttribute", offsetof(struct smc_driver, function_set)},
    {"cuOccupancyMaxActiveBlocksPerMultiprocessor", offsetof(struct smc_driver, occupancy)},
    {"cuMemGetInfo_v2", offsetof(struct smc_driver, memory_info)},
    {"cuMemAlloc_v2", offsetof(struct smc_driver, allocate)},
    {"cuMemFree_v2", offsetof(struct smc_driver, release)},
    {"cuMemHostAlloc", offsetof(struct smc_driver, host_allocate)},
    {"cuMemFreeHost", offsetof(struct smc_driver, host_release)},
    {"cuMemHostGetDevicePointer_v2", offsetof(struct smc_driver, host_pointer)},
    {"cuMemcpyHtoDAsync_v2", offsetof(struct smc_driver, copy_in)},
    {"cuMemcpyDtoHAsync_v2", offsetof(struct smc_driver, copy_out)},
    {"cuMemcpyDtoDAsync_v2", offsetof(struct smc_driver, copy_inside)},
    {"cuStreamCreate", offsetof(struct smc_driver, stream_create)},
    {"cuStreamDestroy_v2", offsetof(struct smc_driver, stream_destroy)},
    {"cuStreamSynchronize", offsetof(struct smc_driver, stream_wait)},
    {"cuLaunchKernel", offsetof(struct smc_driver, launch)},
    {"cuLaunchCooperativeKernel", offsetof(struct smc_driver, launch_together)},
    {"cuEventCreate", offsetof(struct smc_driver, event_create)},
    {"cuEventDestroy_v2", offsetof(struct smc_driver, event_destroy)},
    {"cuEventRecord", offsetof(struct smc_driver, event_record)},
    {"cuEventElapsedTime", offsetof(struct smc_driver, event_milliseconds)},
    {"cuGetErrorString", offsetof(struct smc_driver, error_text)},
};

static int find_functions(char *error) {
  void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
  if (!library)
    return smc_fail(error, SMC_UNSUPPORTED,
                    "there is no NVIDIA driver here (%s): install one, or compile for the CPU with --target native",
                    LIBRARY);
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    void *function = dlsym(library, names[i].name);
    if (!function)
      return smc_fail(error, SMC_UNSUPPORTED, "the NVIDIA driver is too old: it has no %s; 525 or newer is needed",
                      names[i].name);
    memcpy((char *)&functions + names[i].place, &function, sizeof function);
  }
  return SMC_OK;
}

static int start(char *error) {
  int version = 0, count = 0, status = find_functions(error);
  if (status) return status;
  const char *text = "";
  const int failure = functions.init(0);
  if (failure) {
    functions.error_text(failure, &text);
    return smc_fail(error, SMC_UNSUPPORTED, "the NVIDIA driver does not start: %s", text ? text : "no reason is given");
  }
  if (functions.version(&version) || version < LEAST_VERSION)
    return smc_fail(error, SMC_UNSUPPORTED,
                    "the NVIDIA driver is for CUDA %d.%d, and the artifact needs one for CUDA %d.%d or newer (525)",
                    version / 1000, version % 1000 / 10, LEAST_VERSION / 1000, LEAST_VERSION % 1000 / 10);
  if (functions.device_count(&count) || count < 1)
    return smc_fail(error, SMC_UNSUPPORTED, "the NVIDIA driver finds no GPU");
  return SMC_OK;
}

int smc_driver_open(const struct smc_driver **driver, char *error) {
  pthread_mutex_lock(&opening);
  const int status = opened ? SMC_OK : start(error);
  if (!status) opened = 1;
  pthread_mutex_unlock(&opening);
  *driver = &functions;
  return status;
}
