/* The engine's interface to the device that runs a program's steps; cpu/ and cuda/ define these functions, and a
 * program is linked with one of them. Included by internal.h. */
#ifndef SMC_DEVICE_H
#define SMC_DEVICE_H

/* A device's data of a model; cpu/ has none. */
struct smc_device;

/* The best level of a program that the machine runs, or the one with the requested name ("" or NULL: the best):
 * SMC_OK, SMC_BAD_INPUT or SMC_UNSUPPORTED. */
int smc_device_level(const struct smc_program *program, const char *asked, const struct smc_level **level, char *error);
/* How many threads a model's own pool has where its caller requests so many. */
int32_t smc_device_pool_threads(int32_t asked);
/* Brings the weights of an opened artifact to where kernels read them. Sets model->device and model->workers, the
 * number of those who share the blocks of a phase. */
int smc_device_open(smc_model *model, char *error);
void smc_device_close(smc_model *model);

/* ---- memory of the KV cache: reserved at once; where a device gives memory when it is first used, pages may go back
 */

uint8_t *smc_pages_reserve(struct smc_device *device, uint64_t bytes); /* NULL: there is no room */
/* The end of a sentence about missing memory. */
void smc_pages_note(const struct smc_device *device, char *text, size_t size);
void smc_pages_free(struct smc_device *device, uint8_t *pages, uint64_t bytes);
void smc_pages_give_back(struct smc_device *device, uint8_t *page, uint64_t bytes);
/* Bytes that pages can still take; the search ends at `enough`. */
uint64_t smc_pages_available(const struct smc_device *device, uint64_t enough);
void smc_pages_copy(struct smc_device *device, uint8_t *to, const uint8_t *from, uint64_t bytes);
/* From the cache to memory of the host, and back: SMC_OK or SMC_FAILED. */
int smc_pages_read(struct smc_device *device, void *to, const uint8_t *from, uint64_t bytes, char *error);
int smc_pages_write(struct smc_device *device, uint8_t *to, const void *from, uint64_t bytes, char *error);

/* ---- steps */

/* The memory that steps work in: sets model->arena, model->scratch, model->partials, for model->partial_count pairs,
 * and adds to model->memory_bytes. */
int smc_device_allocate(smc_model *model, char *error);
void smc_device_release(smc_model *model);
/* Rows of logits that a step may have where the caller's memory is aligned, and where it is not. */
int32_t smc_device_most_logits(int aligned);
/* Runs a step whose tables are full; logits go to step->logits, memory of the host. SMC_OK, or a sentence. */
int smc_device_run(smc_model *model, struct smc_step *step, uint32_t cancels, char *error);
/* After a step: the last hidden states of its requested tokens, in memory of the host; NULL if the device does not have
 * them. */
const float *smc_device_hidden(smc_model *model, const struct smc_step *step);

/* The limits of the machine, 0 where one is unknown: SMC_OK, SMC_NO_MEMORY or SMC_FAILED. */
int smc_device_limits(smc_model *model, smc_limits *limits, char *error);
/* Before a profile: SMC_OK, or why there can be none. */
int smc_device_profiles(smc_model *model, char *error);

#endif
