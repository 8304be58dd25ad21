/* Drives parts of the engine without a model.
 *
 *   parts find FILE NAME              where a member of a ZIP file lies: "offset length", or the sentence
 *   parts fuzz FILE NAME COUNT SEED   the same for COUNT damaged copies of the file: "found refused"
 *   parts features NAME…              1 or 0 for every LLVM feature
 *   parts missing LIST                those of a comma-separated list that the CPU lacks
 *   parts crc FILE PART               its CRC-32, taken of so many bytes at a time
 *   parts map FILE                    the CRC-32 of the file as the engine maps or reads it
 */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint8_t *read_all(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) exit(2);
  *size = (size_t)ftell(file);
  rewind(file);
  uint8_t *data = malloc(*size ? *size : 1);
  if (!data || fread(data, 1, *size, file) != *size) exit(2);
  fclose(file);
  return data;
}

static uint64_t next_random(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  return *state ^= *state << 17;
}

/* Damages a copy in one to three places: bits, or whole fields with values that overflow sums. */
static void damage(uint8_t *data, size_t size, uint64_t *random) {
  static const uint64_t extremes[] = {
      0, 1, 0x7fffffff, 0x80000000, 0xffffffff, 0x7fffffffffffffff, 0xffffffffffffffff, 0xffffffffffffffe0};
  for (uint64_t count = next_random(random) % 3 + 1; count && size; count--) {
    const size_t at = next_random(random) % size, width = (size_t)1 << next_random(random) % 4;
    if (next_random(random) % 2) {
      data[at] ^= (uint8_t)(1 << next_random(random) % 8);
    } else {
      const uint64_t value = extremes[next_random(random) % 8];
      memcpy(data + at, &value, width < size - at ? width : size - at);
    }
  }
}

static void fuzz(const uint8_t *whole, size_t whole_size, const char *name, long count, uint64_t random) {
  long found = 0;
  volatile uint64_t sum = 0;
  for (long i = 0; i < count; i++) {
    const size_t size = next_random(&random) % 4 ? whole_size : next_random(&random) % (whole_size + 1);
    uint8_t *data = malloc(size ? size : 1); /* a block of its own: the address sanitizer knows its end */
    if (!data) exit(2);
    memcpy(data, whole, size);
    damage(data, size, &random);
    char error[SMC_ERROR_BYTES] = "";
    struct smc_member member = {0};
    const int status = smc_zip_find(data, size, name, &member, error);
    if (status == SMC_OK) {
      found++;
      for (uint64_t k = 0; k < member.length; k++) sum += data[member.offset + k];
    } else if (!error[0]) {
      exit(3);
    }
    free(data);
  }
  printf("%ld %ld\n", found, count - found);
}

int main(int count, char **arguments) {
  if (count >= 2 && !strcmp(arguments[1], "features")) {
    for (int i = 2; i < count; i++) printf("%d\n", smc_cpu_has(arguments[i], strlen(arguments[i])));
    return 0;
  }
  if (count == 3 && !strcmp(arguments[1], "missing")) {
    char missing[32] = "";
    const int number = smc_cpu_missing(arguments[2], missing, sizeof missing);
    printf("%d\n%s\n", number, missing);
    return 0;
  }
  if (count == 2 && !strcmp(arguments[1], "prefetch")) {
    printf("%d\n", smc_prefetch_distance());
    return 0;
  }
  if (count == 3 && !strcmp(arguments[1], "map")) {
    struct smc_artifact artifact;
    char error[SMC_ERROR_BYTES] = "";
    if (smc_artifact_map(&artifact, arguments[2], error)) printf("%s\n", error);
    else printf("%08x\n", smc_crc32(0, artifact.data, artifact.size));
    smc_artifact_close(&artifact);
    return 0;
  }
  if (count < 4) return 2;
  size_t size;
  uint8_t *data = read_all(arguments[2], &size);
  if (count == 4 && !strcmp(arguments[1], "find")) {
    char error[SMC_ERROR_BYTES];
    struct smc_member member;
    if (smc_zip_find(data, size, arguments[3], &member, error) == SMC_OK)
      printf("%llu %llu\n", (unsigned long long)member.offset, (unsigned long long)member.length);
    else printf("%s\n", error);
  } else if (count == 4 && !strcmp(arguments[1], "crc")) {
    const size_t part = (size_t)atol(arguments[3]);
    uint32_t crc = 0;
    for (size_t done = 0; done < size; done += part)
      crc = smc_crc32(crc, data + done, size - done < part ? size - done : part);
    printf("%08x\n", crc);
  } else if (count == 4 && !strcmp(arguments[1], "join")) {
    const size_t part = (size_t)atol(arguments[3]);
    uint32_t crc = 0;
    for (size_t done = 0, bytes; done < size; done += bytes) {
      bytes = size - done < part ? size - done : part;
      crc = smc_crc32_join(crc, smc_crc32(0, data + done, bytes), bytes);
    }
    printf("%08x\n", crc);
  } else if (count == 6 && !strcmp(arguments[1], "fuzz")) {
    fuzz(data, size, arguments[3], atol(arguments[4]), strtoull(arguments[5], NULL, 10));
  } else {
    return 2;
  }
  free(data);
  return 0;
}
