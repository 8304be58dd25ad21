/* Weights, the KV cache and activations on huge pages.
 *
 * A token reads all weights once, and on pages of 4 KiB that costs a look-up of the page table every 64 cache lines: under
 * virtualization reading was measured a quarter faster on pages of 2 MiB. A mapped file gets small pages, so where the
 * kernel gives huge ones for the asking and memory is ample, the weights are copied and the file is let go. What is copied is
 * in a cache just then: its checksum costs little. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE (2u << 20)
#define SMALLEST_COPY (8u << 20) /* less fits caches anyway */
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

int smc_weights_to_huge_pages(struct smc_artifact *artifact, char *error) {
  const uint64_t bytes = smc_round_up(artifact->weight_bytes, HUGE_PAGE);
  if (bytes < SMALLEST_COPY || !huge_pages_given()) return SMC_OK;
  if (smc_available_memory(2 * bytes) / 2 < bytes) return SMC_OK; /* file pages can be dropped and read again, a copy cannot */
  uint8_t *region = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (region == MAP_FAILED) return SMC_OK;
  uint8_t *copy = (uint8_t *)(uintptr_t)smc_round_up((uint64_t)(uintptr_t)region, HUGE_PAGE);
  if (madvise(copy, bytes, MADV_HUGEPAGE)) {
    munmap(region, bytes + HUGE_PAGE);
    return SMC_OK;
  }
  uint32_t crc = 0;
  for (uint64_t done = 0; done < artifact->weight_bytes; done += HUGE_PAGE) {
    const uint64_t left = artifact->weight_bytes - done, part = left < HUGE_PAGE ? left : HUGE_PAGE;
    for (uint64_t at = 0; at < part; at += CHECKED_BYTES) {
      const uint64_t count = part - at < CHECKED_BYTES ? part - at : CHECKED_BYTES;
      memcpy(copy + done + at, artifact->weights + done + at, count);
      crc = smc_crc32(crc, copy + done + at, count);
    }
    /* What is copied need not stay mapped: the process never holds the weights twice. */
    (void)madvise((void *)(uintptr_t)(artifact->weights + done), part, MADV_DONTNEED);
  }
  mprotect(region, bytes + HUGE_PAGE, PROT_READ);
  munmap((void *)(uintptr_t)artifact->data, artifact->size);
  artifact->data = region, artifact->size = bytes + HUGE_PAGE;
  artifact->weights = copy;
  artifact->checked = crc == artifact->crc;
  return artifact->checked ? SMC_OK : smc_artifact_damaged(error);
}

void smc_advise_huge_pages(void *begin, uint64_t bytes) {
  if (bytes >= HUGE_PAGE && huge_pages_given()) (void)madvise(begin, bytes, MADV_HUGEPAGE);
}
#else
int smc_weights_to_huge_pages(struct smc_artifact *artifact, char *error) { (void)artifact, (void)error; return SMC_OK; }
void smc_advise_huge_pages(void *begin, uint64_t bytes) { (void)begin, (void)bytes; }
#endif
