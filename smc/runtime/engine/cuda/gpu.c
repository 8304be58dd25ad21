/* A GPU as a device: which one, its machine code, memory. Nothing is allocated while a step runs. */
#include "gpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEBIBYTE (1024.0 * 1024.0)
#define STAGE_BYTES (UINT64_C(16) << 20) /* of weights on their way to the device */

/* ---- failures: after one, the device can't be used any more */

int smc_device_failed(struct smc_device *device, int status) {
  device->lost |= status >= CUDA_FIRST_LASTING && status <= CUDA_LAST_LASTING;
  if (status && !device->broken && (device->driver->error_text(status, &device->broken) || !device->broken))
    device->broken = "an unknown error";
  return status != 0;
}

int smc_device_sentence(const struct smc_device *device, char *error) {
  return smc_fail(error, SMC_FAILED, "the GPU %s failed: %s; open the model again", device->name,
                  device->broken ? device->broken : "no reason is given");
}

int smc_device_no_room(const struct smc_device *device, const char *what, uint64_t bytes, char *error) {
  size_t left = 0, total = 0;
  device->driver->memory_info(&left, &total);
  return smc_fail(error, SMC_NO_MEMORY, "the %s need %.0f MiB of the GPU's memory, of which %.0f of %.0f MiB are free",
                  what, ceil((double)bytes / MEBIBYTE), (double)left / MEBIBYTE, (double)total / MEBIBYTE);
}

void smc_device_enter(struct smc_device *device) {
  smc_device_failed(device, device->driver->context_push(device->context));
}

void smc_device_leave(struct smc_device *device) {
  cuda_context before;
  smc_device_failed(device, device->driver->context_pop(&before));
}

/* ---- which GPU, which level */

/* The driver's handle of the GPU: the first one, or $SMC_DEVICE. */
static int find_device(const struct smc_driver *driver, int *device, char *error) {
  int count = 0, number = 0;
  const char *asked = getenv("SMC_DEVICE");
  char *end = NULL;
  driver->device_count(&count);
  if (asked && *asked) number = (int)strtol(asked, &end, 10);
  if ((end && *end) || number < 0 || number >= count || driver->device(device, number))
    return smc_fail(error, SMC_BAD_INPUT, "SMC_DEVICE is '%s': this machine has GPUs 0 to %d", asked ? asked : "",
                    count - 1);
  return SMC_OK;
}

static int runs_on(const struct smc_image *image, int architecture) {
  return image->ptx ? image->architecture <= architecture
                    : image->architecture / 10 == architecture / 10 && image->architecture <= architecture;
}

int smc_device_level(const struct smc_program *program, const char *asked, const struct smc_level **level,
                     char *error) {
  const struct smc_driver *driver;
  int device = 0, major = 0, minor = 0, known = 0, status = smc_driver_open(&driver, error);
  if (status || (status = find_device(driver, &device, error))) return status;
  driver->device_attribute(&major, CUDA_MAJOR, device);
  driver->device_attribute(&minor, CUDA_MINOR, device);
  char names[256] = "", name[96] = "";
  driver->device_name(name, sizeof name, device);
  *level = NULL;
  for (int32_t i = 0; i < program->level_count; i++) {
    const struct smc_level *candidate = &program->levels[i];
    const struct smc_image *image = candidate->kernels, *best = *level ? (*level)->kernels : NULL;
    snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "", candidate->name);
    if (asked && strcmp(asked, candidate->name)) continue;
    known = 1;
    if (!runs_on(image, 10 * major + minor)) continue;
    if (!best || (!image->ptx && (best->ptx || image->architecture > best->architecture))) *level = candidate;
  }
  if (*level) return SMC_OK;
  if (asked && !known) return smc_fail(error, SMC_BAD_INPUT, "the artifact has no level '%s': it has %s", asked, names);
  return smc_fail(error, SMC_UNSUPPORTED, "the GPU %s has compute capability %d.%d, and the artifact has code for %s",
                  name, major, minor, asked ? asked : names);
}

int32_t smc_device_pool_threads(int32_t asked) {
  (void)asked;
  return 1; /* the caller's, which waits for the GPU */
}

/* ---- open */

/* The mapped weights pass through memory that the GPU copies from; their checksum is computed meanwhile. */
static int upload(struct smc_device *device, struct smc_artifact *artifact, char *error) {
  const struct smc_driver *driver = device->driver;
  void *stage = NULL;
  uint32_t crc = 0;
  if (smc_device_failed(device, driver->host_allocate(&stage, STAGE_BYTES, 0)))
    return smc_device_sentence(device, error);
  for (uint64_t done = 0, part; done < artifact->weight_bytes && !device->broken; done += part) {
    part = artifact->weight_bytes - done < STAGE_BYTES ? artifact->weight_bytes - done : STAGE_BYTES;
    memcpy(stage, artifact->weights + done, part);
    crc = smc_crc32(crc, stage, part);
    smc_device_failed(device, driver->copy_in(device->weights + done, stage, part, device->stream));
    smc_device_failed(device, driver->stream_wait(device->stream));
    (void)madvise((void *)((uintptr_t)(artifact->weights + done) / 4096 * 4096), part, MADV_DONTNEED);
  }
  driver->host_release(stage);
  if (device->broken) return smc_device_sentence(device, error);
  artifact->checked = crc == artifact->crc;
  return artifact->checked ? SMC_OK : smc_artifact_damaged(error);
}

/* How many blocks of threads a launch has: those that the GPU runs at once, or $SMC_CUDA_BLOCKS. */
static int choose_blocks(struct smc_device *device, char *error) {
  const struct smc_driver *driver = device->driver;
  int each = 0, processors = 0, together = 0;
  smc_device_failed(device,
                    driver->occupancy(&each, device->function, SMC_BLOCK_THREADS, (size_t)device->shared_bytes));
  smc_device_failed(device, driver->device_attribute(&processors, CUDA_MULTIPROCESSORS, device->number));
  smc_device_failed(device, driver->device_attribute(&together, CUDA_COOPERATIVE_LAUNCH, device->number));
  if (device->broken) return smc_device_sentence(device, error);
  const char *mode = getenv("SMC_CUDA"), *asked = getenv("SMC_CUDA_BLOCKS");
  device->resident = together && !(mode && !strcmp(mode, "launches"));
  device->blocks = each * processors;
  if (asked && atoi(asked) > 0 && atoi(asked) < device->blocks) device->blocks = atoi(asked);
  if (device->blocks > 0) return SMC_OK;
  return smc_fail(error, SMC_UNSUPPORTED,
                  "the GPU %s can't run the program: a block of threads needs %d bytes of shared memory", device->name,
                  device->shared_bytes);
}

static int load_program(smc_model *model, char *error) {
  struct smc_device *device = model->device;
  const struct smc_driver *driver = device->driver;
  const struct smc_image *image = model->level->kernels;
  device->shared_bytes = image->shared_bytes;
  if (smc_device_failed(device, driver->stream_create(&device->stream, CUDA_STREAM_APART)) ||
      smc_device_failed(device, driver->module_load(&device->module, image->data)) ||
      smc_device_failed(device, driver->module_function(&device->function, device->module, "smc_run")) ||
      smc_device_failed(device, driver->function_set(device->function, CUDA_MOST_DYNAMIC_SHARED, device->shared_bytes)))
    return smc_device_sentence(device, error);
  return choose_blocks(device, error);
}

static int allocate_weights(smc_model *model, char *error) {
  struct smc_device *device = model->device;
  const uint64_t bytes = model->artifact.weight_bytes;
  if (device->driver->allocate(&device->weights, bytes)) return smc_device_no_room(device, "weights", bytes, error);
  return upload(device, &model->artifact, error);
}

int smc_device_open(smc_model *model, char *error) {
  const struct smc_driver *driver;
  int number = 0, status = smc_driver_open(&driver, error);
  if (status || (status = find_device(driver, &number, error))) return status;
  struct smc_device *device = model->device = calloc(1, sizeof *device);
  if (!device) return smc_fail(error, SMC_NO_MEMORY, "can't allocate a model");
  device->driver = driver;
  device->number = number;
  driver->device_name(device->name, sizeof device->name, number);
  if (smc_device_failed(device, driver->context_retain(&device->context, number)))
    return smc_device_sentence(device, error);
  smc_device_enter(device);
  status = load_program(model, error);
  model->workers = device->blocks;
  if (!status) status = allocate_weights(model, error);
  smc_device_leave(device);
  return status;
}

void smc_device_close(smc_model *model) {
  struct smc_device *device = model->device;
  if (!device) return;
  const struct smc_driver *driver = device->driver;
  if (device->context && model->process == getpid()) {
    smc_device_enter(device);
    if (device->weights) driver->release(device->weights);
    if (device->module) driver->module_unload(device->module);
    if (device->stream) driver->stream_destroy(device->stream);
    smc_device_leave(device);
    driver->context_release(device->number);
    if (device->lost) driver->context_reset(device->number); /* a later model gets one that works */
  }
  free(device->hidden);
  free(device);
  model->device = NULL;
}

/* ---- the cache: all of it at once, so that no step allocates memory */

uint8_t *smc_pages_reserve(struct smc_device *device, uint64_t bytes) {
  cuda_pointer pages = 0;
  smc_device_enter(device);
  const int status = device->driver->allocate(&pages, bytes);
  smc_device_leave(device);
  return status ? NULL : (uint8_t *)(uintptr_t)pages;
}

void smc_pages_note(const struct smc_device *device, char *text, size_t size) {
  size_t left = 0, total = 0;
  device->driver->context_push(device->context);
  device->driver->memory_info(&left, &total);
  cuda_context before;
  device->driver->context_pop(&before);
  snprintf(text, size, "; %.0f of the GPU's %.0f MiB are free", (double)left / MEBIBYTE, (double)total / MEBIBYTE);
}

void smc_pages_free(struct smc_device *device, uint8_t *pages, uint64_t bytes) {
  (void)bytes;
  smc_device_enter(device);
  device->driver->release((cuda_pointer)(uintptr_t)pages);
  smc_device_leave(device);
}

void smc_pages_give_back(struct smc_device *device, uint8_t *page, uint64_t bytes) {
  (void)device, (void)page, (void)bytes;
}

uint64_t smc_pages_available(const struct smc_device *device, uint64_t enough) {
  (void)device, (void)enough;
  return UINT64_MAX;
}

void smc_pages_copy(struct smc_device *device, uint8_t *to, const uint8_t *from, uint64_t bytes) {
  smc_device_enter(device);
  smc_device_failed(device, device->driver->copy_inside((cuda_pointer)(uintptr_t)to, (cuda_pointer)(uintptr_t)from,
                                                        bytes, device->stream));
  smc_device_leave(device); /* steps run behind it, in the same stream */
}

int smc_pages_read(struct smc_device *device, void *to, const uint8_t *from, uint64_t bytes, char *error) {
  smc_device_enter(device);
  smc_device_failed(device, device->driver->copy_out(to, (cuda_pointer)(uintptr_t)from, bytes, device->stream));
  smc_device_failed(device, device->driver->stream_wait(device->stream));
  smc_device_leave(device);
  return device->broken ? smc_device_sentence(device, error) : SMC_OK;
}

int smc_pages_write(struct smc_device *device, uint8_t *to, const void *from, uint64_t bytes, char *error) {
  smc_device_enter(device);
  smc_device_failed(device, device->driver->copy_in((cuda_pointer)(uintptr_t)to, from, bytes, device->stream));
  smc_device_failed(device, device->driver->stream_wait(device->stream));
  smc_device_leave(device);
  return device->broken ? smc_device_sentence(device, error) : SMC_OK;
}

/* ---- profiles */

/* Memory alone: what its clock and the width of its bus allow, with two transfers per cycle. */
int smc_device_limits(smc_model *model, smc_limits *limits, char *error) {
  struct smc_device *device = model->device;
  int kilohertz = 0, bits = 0;
  if (device->broken) return smc_device_sentence(device, error);
  device->driver->device_attribute(&kilohertz, CUDA_MEMORY_KILOHERTZ, device->number);
  device->driver->device_attribute(&bits, CUDA_MEMORY_BUS_BITS, device->number);
  limits->memory_bytes = 2.0 * 1e3 * (double)kilohertz * (double)bits / 8.0;
  limits->weights_bytes = limits->i8_macs = limits->f32_macs = 0.0;
  return SMC_OK;
}

int smc_device_profiles(smc_model *model, char *error) {
  return model->device->broken ? smc_device_sentence(model->device, error) : SMC_OK;
}
