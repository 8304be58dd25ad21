/* A stand-in for libcuda.so.1: it runs programs for GPUs on the CPU, for tests (fibers.h).
 *
 * cuModuleLoadData takes real machine code, of which it only reads the program's name: $SMC_EMULATOR_PROGRAMS/NAME.so
 * is the same text compiled for the CPU. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fibers.h"

#define API __attribute__((visibility("default")))

enum {
  OK = 0,
  INVALID = 1,
  NO_MEMORY = 2,
  NO_DEVICE = 100,
  NO_IMAGE = 209,
  NOT_FOUND = 500,
  LAUNCH_FAILED = 719,
  TOO_LARGE = 720,
  NOT_SUPPORTED = 801
};

/* ---- the driver's functions */

#define MOST_ALLOCATIONS 4096

struct allocation {
  uint8_t *begin;
  size_t bytes;
};
static struct allocation allocations[MOST_ALLOCATIONS];
static size_t used_bytes;

API int cuInit(unsigned flags) {
  (void)flags;
  read_settings();
  fibers_begin();
  return settings.devices < 0 ? NO_DEVICE : OK;
}
API int cuDriverGetVersion(int *version) { return read_settings(), *version = (int)settings.version, OK; }
API int cuDeviceGetCount(int *count) { return *count = (int)settings.devices, OK; }
API int cuDeviceGet(int *device, int number) { return number < settings.devices ? (*device = number, OK) : INVALID; }
API int cuDeviceGetName(char *name, int size, int device) {
  return snprintf(name, (size_t)size, "stand-in %d", device), OK;
}
API int cuDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  switch (attribute) {
    case 16: *value = (int)settings.blocks; return OK;
    case 36: *value = 1000000; return OK;
    case 37: *value = 4096; return OK;
    case 75: *value = (int)settings.capability / 10; return OK;
    case 76: *value = (int)settings.capability % 10; return OK;
    case 95: *value = settings.cooperative != 0; return OK;
  }
  return INVALID;
}
API int cuDevicePrimaryCtxRetain(void **context, int device) { return (void)device, *context = &emulator, OK; }
API int cuDevicePrimaryCtxRelease_v2(int device) { return (void)device, OK; }
static int broken; /* failures of a kernel are for good, until the context is reset */
API int cuDevicePrimaryCtxReset_v2(int device) { return (void)device, broken = OK, OK; }
static int depth;
API int cuCtxPushCurrent_v2(void *context) { return context == &emulator ? depth++, OK : INVALID; }
API int cuCtxPopCurrent_v2(void **context) { return depth > 0 ? depth--, *context = &emulator, OK : INVALID; }

static const char *find_name(const char *image, size_t bytes) {
  static char name[64];
  const char *const mark = "smc_program_";
  const char *found = memmem(image, bytes, mark, strlen(mark));
  if (!found) return NULL;
  snprintf(name, sizeof name, "%.44s", found);
  return name;
}

API int cuModuleLoadData(void **module, const void *image) {
  const uint8_t *bytes = image;
  size_t size;
  if (!memcmp(bytes, "\177ELF", 4)) { /* it ends with the table of its sections */
    uint64_t sections;
    uint16_t each, count;
    memcpy(&sections, bytes + 40, 8);
    memcpy(&each, bytes + 58, 2);
    memcpy(&count, bytes + 60, 2);
    size = sections + (size_t)each * count;
  } else {
    size = strlen(image);
  }
  const char *folder = getenv("SMC_EMULATOR_PROGRAMS"), *name = find_name(image, size);
  char path[4096];
  if (!folder || !name) return NO_IMAGE;
  snprintf(path, sizeof path, "%s/%s.so", folder, name);
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return fprintf(stderr, "stand-in: %s\n", dlerror()), NO_IMAGE;
  struct emulator **slot = dlsym(library, "smc_emulator");
  *slot = &emulator;
  *module = library;
  return OK;
}
API int cuModuleUnload(void *module) { return dlclose(module) ? INVALID : OK; }
API int cuModuleGetFunction(void **function, void *module, const char *name) {
  return (*function = dlsym(module, name)) ? OK : NOT_FOUND;
}

static int shared_limit = 48 << 10;
API int cuFuncSetAttribute(void *function, int attribute, int value) {
  if (!function || attribute != 8 || value > MOST_SHARED) return INVALID;
  shared_limit = value > shared_limit ? value : shared_limit;
  return OK;
}
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *count, void *function, int threads, size_t shared) {
  return function && threads == THREADS ? (*count = shared <= MOST_SHARED, OK) : INVALID;
}
static int eaten_seen; /* queries show the other process's memory only after an allocation has failed */
API int cuMemGetInfo_v2(size_t *left, size_t *total) {
  *total = (size_t)settings.memory << 20;
  const size_t used = used_bytes + (eaten_seen ? (size_t)settings.eaten << 20 : 0);
  *left = *total > used ? *total - used : 0;
  return OK;
}

/* For tests: queries no longer show the other process's memory. */
API void emulator_forget(void) { eaten_seen = 0; }

static int take(uint64_t *pointer, size_t bytes) {
  struct allocation *place = allocations;
  if (!bytes || used_bytes + bytes + ((size_t)settings.eaten << 20) > (size_t)settings.memory << 20)
    return eaten_seen = 1, NO_MEMORY;
  while (place->begin) place++;
  *place = (struct allocation){region_take(bytes), bytes};
  *pointer = (uint64_t)place->begin;
  used_bytes += place->begin ? bytes : 0;
  return place->begin ? OK : NO_MEMORY;
}

static int give(uint64_t pointer) {
  for (struct allocation *one = allocations; pointer && one < allocations + MOST_ALLOCATIONS; one++) {
    if ((uint64_t)one->begin != pointer) continue;
    region_give(one->begin, one->bytes);
    used_bytes -= one->bytes;
    *one = (struct allocation){0};
    return OK;
  }
  return INVALID;
}
API int cuMemAlloc_v2(uint64_t *pointer, size_t bytes) { return depth ? take(pointer, bytes) : INVALID; }
API int cuMemFree_v2(uint64_t pointer) { return depth ? give(pointer) : INVALID; }
API int cuMemHostAlloc(void **pointer, size_t bytes, unsigned flags) {
  return (void)flags, (*pointer = aligned_alloc(256, (bytes + 255) / 256 * 256)) ? OK : NO_MEMORY;
}
API int cuMemFreeHost(void *pointer) { return free(pointer), OK; }
API int cuMemHostGetDevicePointer_v2(uint64_t *pointer, void *host, unsigned flags) {
  return (void)flags, *pointer = (uint64_t)host, OK;
}

API int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
  return (void)stream, broken ? broken : (memcpy((void *)to, from, bytes), OK);
}
API int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
  return (void)stream, broken ? broken : (memcpy(to, (void *)from, bytes), OK);
}
API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
  return (void)stream, broken ? broken : (memcpy((void *)to, (void *)from, bytes), OK);
}
API int cuStreamCreate(void **stream, unsigned flags) { return (void)flags, *stream = &settings, OK; }
API int cuStreamDestroy_v2(void *stream) { return stream == &settings ? OK : INVALID; }
API int cuStreamSynchronize(void *stream) { return stream == &settings ? broken : INVALID; }

static struct {
  struct call call;
  int blocks;
  size_t shared;
} captured[1024];
static int capturing, captured_count;

API int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                       unsigned shared, void *stream, void **arguments, void **extra) {
  static long launches;
  if (broken) return broken;
  if (!depth || extra || y * z * ty * tz != 1 || tx != THREADS || x < 1 || (int)shared > shared_limit ||
      stream != &settings)
    return INVALID;
  if (++launches == settings.fail_launch) return broken = LAUNCH_FAILED;
  const struct call call = {(entry *)function, *(void **)arguments[0], *(void **)arguments[1],
                            *(uint32_t *)arguments[2], *(uint32_t *)arguments[3]};
  if (capturing && captured_count < 1024) {
    captured[captured_count].call = call;
    captured[captured_count].blocks = (int)x;
    captured[captured_count++].shared = shared;
  } else if (!capturing) {
    run_blocks(&call, (int)x, shared);
  }
  return OK;
}
API int cuLaunchCooperativeKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty,
                                  unsigned tz, unsigned shared, void *stream, void **arguments) {
  if (settings.cooperative != 1) return NOT_SUPPORTED;
  if (x > (unsigned)settings.blocks) return TOO_LARGE;
  return cuLaunchKernel(function, x, y, z, tx, ty, tz, shared, stream, arguments, NULL);
}
/* ---- events and graphs, which the probe of benchmarks/cuda_kit has */

API int cuEventCreate(void **event, unsigned flags) { return (void)flags, (*event = calloc(1, 8)) ? OK : NO_MEMORY; }
API int cuEventDestroy_v2(void *event) { return free(event), OK; }
API int cuEventRecord(uint64_t *event, void *stream) {
  static uint64_t clock;
  return (void)stream, *event = clock += 1000, OK;
}
API int cuEventElapsedTime(float *milliseconds, const uint64_t *begin, const uint64_t *end) {
  return *milliseconds = (float)(*end - *begin) / 1e6f, OK;
}
API int cuStreamBeginCapture_v2(void *stream, int mode) {
  return (void)stream, (void)mode, capturing = 1, captured_count = 0, OK;
}
API int cuStreamEndCapture(void *stream, void **graph) { return (void)stream, *graph = captured, capturing = 0, OK; }
API int cuGraphInstantiateWithFlags(void **executable, void *graph, uint64_t flags) {
  return (void)flags, *executable = graph, OK;
}
API int cuGraphLaunch(void *executable, void *stream) {
  if (executable != captured || stream != &settings) return INVALID;
  for (int i = 0; i < captured_count; i++) run_blocks(&captured[i].call, captured[i].blocks, captured[i].shared);
  return OK;
}

API int cuGetErrorString(int error, const char **text) {
  *text = error == NO_MEMORY       ? "out of memory"
          : error == NO_DEVICE     ? "no CUDA-capable device is detected"
          : error == NO_IMAGE      ? "no kernel image is available"
          : error == NOT_SUPPORTED ? "operation not supported"
          : error == LAUNCH_FAILED ? "unspecified launch failure"
                                   : "invalid argument";
  return OK;
}
