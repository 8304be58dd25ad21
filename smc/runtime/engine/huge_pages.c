/* Weights, the KV cache and activations on huge pages.
 *
 * A token reads all weights once, and on pages of 4 KiB that costs a look-up of the page table every 64 cache lines:
 * under virtualization reading was measured a quarter faster on pages of 2 MiB. A mapped file gets small pages. So if
 * the kernel grants huge pages and memory is ample, the weights are copied and the file is unmapped. The copied bytes
 * are in a cache, so their checksum costs little. */
#include "internal.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE (2u << 20)
#define SMALLEST_COPY (8u << 20)   /* smaller weights fit caches anyway */
#define CHECKED_BYTES (128u << 10) /* copied, then read once more while caches have it */

#if defined(__linux__) && defined(MADV_HUGEPAGE)
static int huge_pages_given(void) {
  const char *asked = getenv("SMC_HUGE_PAGES");
  if (asked && !strcmp(asked, "0")) return 0;
  FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "re");
  if (!file) return 0;
  char line[64] = "";
  const int given = fgets(line, sizeof line, file) && !strstr(line, "[never]");
  fclose(file);
  return given;
}

/* What is copied by several threads, a slice of a huge page at a time. */
struct copy {
  const uint8_t *from;
  uint8_t *to;
  uint64_t bytes;
  _Atomic uint64_t claimed; /* slices that a thread has taken */
  uint32_t *crcs;           /* of each slice */
};

static uint64_t slice_bytes(const struct copy *copy, uint64_t slice) {
  const uint64_t left = copy->bytes - slice * HUGE_PAGE;
  return left < HUGE_PAGE ? left : HUGE_PAGE;
}

static void *copy_slices(void *argument) {
  struct copy *copy = argument;
  const uint64_t slices = smc_round_up(copy->bytes, HUGE_PAGE) / HUGE_PAGE;
  for (uint64_t slice; (slice = atomic_fetch_add(&copy->claimed, 1)) < slices;) {
    const uint64_t begin = slice * HUGE_PAGE, bytes = slice_bytes(copy, slice);
    uint32_t crc = 0;
    for (uint64_t at = 0; at < bytes; at += CHECKED_BYTES) {
      const uint64_t count = bytes - at < CHECKED_BYTES ? bytes - at : CHECKED_BYTES;
      memcpy(copy->to + begin + at, copy->from + begin + at, count);
      crc = smc_crc32(crc, copy->to + begin + at, count);
    }
    copy->crcs[slice] = crc;
    /* The copied part of the file is unmapped, so the process never holds the weights twice. */
    (void)madvise((void *)(uintptr_t)(copy->from + begin), bytes, MADV_DONTNEED);
  }
  return NULL;
}

/* Copies with a second thread where the model has some: pages are filled with zeros and the checksum is computed
 * meanwhile. */
static uint32_t copy_weights(struct copy *copy, int32_t threads) {
  pthread_t helper;
  sigset_t all, before; /* signals are the program's: none is delivered to the helper */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const int helped = threads > 1 && !pthread_create(&helper, NULL, copy_slices, copy);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  copy_slices(copy);
  if (helped) pthread_join(helper, NULL);
  uint32_t crc = 0;
  for (uint64_t slice = 0; slice * HUGE_PAGE < copy->bytes; slice++)
    crc = smc_crc32_join(crc, copy->crcs[slice], slice_bytes(copy, slice));
  return crc;
}

int smc_weights_to_huge_pages(struct smc_artifact *artifact, int32_t threads, char *error) {
  const uint64_t bytes = smc_round_up(artifact->weight_bytes, HUGE_PAGE);
  if (bytes < SMALLEST_COPY || !huge_pages_given()) return SMC_OK;
  if (smc_available_memory(2 * bytes) / 2 < bytes)
    return SMC_OK; /* file pages can be dropped and read again, a copy can't */
  uint32_t *crcs = malloc(bytes / HUGE_PAGE * sizeof *crcs);
  uint8_t *region =
      crcs ? mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : MAP_FAILED;
  uint8_t *to = (uint8_t *)(uintptr_t)smc_round_up((uint64_t)(uintptr_t)region, HUGE_PAGE);
  if (region == MAP_FAILED || madvise(to, bytes, MADV_HUGEPAGE)) {
    if (region != MAP_FAILED) munmap(region, bytes + HUGE_PAGE);
    free(crcs);
    return SMC_OK;
  }
  struct copy copy = {.from = artifact->weights, .to = to, .bytes = artifact->weight_bytes, .crcs = crcs};
  const uint32_t crc = copy_weights(&copy, threads);
  free(crcs);
  mprotect(region, bytes + HUGE_PAGE, PROT_READ);
  munmap((void *)(uintptr_t)artifact->data, artifact->size);
  artifact->data = region, artifact->size = bytes + HUGE_PAGE;
  artifact->weights = to;
  artifact->checked = crc == artifact->crc;
  return artifact->checked ? SMC_OK : smc_artifact_damaged(error);
}

void smc_advise_huge_pages(void *begin, uint64_t bytes) {
  if (bytes >= HUGE_PAGE && huge_pages_given()) (void)madvise(begin, bytes, MADV_HUGEPAGE);
}
#else
int smc_weights_to_huge_pages(struct smc_artifact *artifact, int32_t threads, char *error) {
  (void)artifact, (void)threads, (void)error;
  return SMC_OK;
}
void smc_advise_huge_pages(void *begin, uint64_t bytes) { (void)begin, (void)bytes; }
#endif
