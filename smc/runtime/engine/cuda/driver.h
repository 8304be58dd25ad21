/* The CUDA driver, libcuda.so.1, which comes with NVIDIA's kernel module: opened when a model is, so that nothing of
 * CUDA is needed to build or to load a program. Types, names and numbers are those of "CUDA Driver API Reference
 * Manual". */
#ifndef SMC_DRIVER_H
#define SMC_DRIVER_H

#include <stddef.h>
#include <stdint.h>

typedef uint64_t cuda_pointer; /* memory of the device */
typedef struct cuda_context *cuda_context;
typedef struct cuda_module *cuda_module;
typedef struct cuda_function *cuda_function;
typedef struct cuda_stream *cuda_stream;
typedef struct cuda_event *cuda_event;

enum cuda_attribute {
  CUDA_MULTIPROCESSORS = 16,
  CUDA_MEMORY_KILOHERTZ = 36,
  CUDA_MEMORY_BUS_BITS = 37,
  CUDA_MAJOR = 75,
  CUDA_MINOR = 76,
  CUDA_COOPERATIVE_LAUNCH = 95,
};
enum cuda_function_attribute { CUDA_MOST_DYNAMIC_SHARED = 8 };
enum { CUDA_HOST_MAPPED = 2, CUDA_STREAM_APART = 1 };
enum { CUDA_NO_MEMORY = 2, CUDA_TOO_LARGE = 720, CUDA_NOT_PERMITTED = 800, CUDA_NOT_SUPPORTED = 801 };
enum { CUDA_FIRST_LASTING = 700, CUDA_LAST_LASTING = 719 }; /* failures of a kernel, behind which its context is lost */

struct smc_driver {
  int (*init)(unsigned flags);
  int (*version)(int *version);
  int (*device_count)(int *count);
  int (*device)(int *device, int number);
  int (*device_name)(char *name, int size, int device);
  int (*device_attribute)(int *value, int attribute, int device);
  int (*context_retain)(cuda_context *context, int device);
  int (*context_release)(int device);
  int (*context_reset)(int device);
  int (*context_push)(cuda_context context);
  int (*context_pop)(cuda_context *context);
  int (*module_load)(cuda_module *module, const void *image);
  int (*module_unload)(cuda_module module);
  int (*module_function)(cuda_function *function, cuda_module module, const char *name);
  int (*function_set)(cuda_function function, int attribute, int value);
  int (*occupancy)(int *blocks, cuda_function function, int threads, size_t shared);
  int (*memory_info)(size_t *available, size_t *total);
  int (*allocate)(cuda_pointer *pointer, size_t bytes);
  int (*release)(cuda_pointer pointer);
  int (*host_allocate)(void **pointer, size_t bytes, unsigned flags);
  int (*host_release)(void *pointer);
  int (*host_pointer)(cuda_pointer *pointer, void *host, unsigned flags);
  int (*copy_in)(cuda_pointer to, const void *from, size_t bytes, cuda_stream stream);
  int (*copy_out)(void *to, cuda_pointer from, size_t bytes, cuda_stream stream);
  int (*copy_inside)(cuda_pointer to, cuda_pointer from, size_t bytes, cuda_stream stream);
  int (*stream_create)(cuda_stream *stream, unsigned flags);
  int (*stream_destroy)(cuda_stream stream);
  int (*stream_wait)(cuda_stream stream);
  int (*launch)(cuda_function function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                unsigned shared, cuda_stream stream, void **arguments, void **extra);
  int (*launch_together)(cuda_function function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty,
                         unsigned tz, unsigned shared, cuda_stream stream, void **arguments);
  int (*event_create)(cuda_event *event, unsigned flags);
  int (*event_destroy)(cuda_event event);
  int (*event_record)(cuda_event event, cuda_stream stream);
  int (*event_milliseconds)(float *milliseconds, cuda_event begin, cuda_event end);
  int (*error_text)(int error, const char **text);
};

/* The driver, opened once for the process and initialized: SMC_OK, or why there is none. */
int smc_driver_open(const struct smc_driver **driver, char *error);

#endif
