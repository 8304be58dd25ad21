/* How much memory there is: Linux kills a process that exceeds what the machine or its cgroups have, so memory is
 * checked before. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH_BYTES 4096
#define NO_LIMIT (UINT64_C(1) << 60) /* version 1 says a number like 2^63 */

struct look {
  uint64_t enough, least;
};

/* A number of bytes in a cgroup's file; NO_LIMIT for "max" and where there is none. */
static uint64_t number_in(const char *directory, const char *name) {
  char path[PATH_BYTES + 64], line[64];
  unsigned long long bytes;
  snprintf(path, sizeof path, "%s/%s", directory, name);
  return smc_read_line(path, line, sizeof line) && sscanf(line, "%llu", &bytes) == 1 && bytes < NO_LIMIT ? bytes
                                                                                                         : NO_LIMIT;
}

/* Pages of files, which the kernel takes back when memory is needed. Files in memory only (tmpfs) do not count. */
static uint64_t file_pages(const char *directory, int version) {
  static const char *const names[2][2] = {{"total_inactive_file", "total_active_file"},
                                          {"inactive_file", "active_file"}};
  char path[PATH_BYTES + 64], line[128], name[64];
  unsigned long long bytes;
  uint64_t sum = 0;
  snprintf(path, sizeof path, "%s/memory.stat", directory);
  FILE *file = fopen(path, "re");
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "%63s %llu", name, &bytes) == 2 &&
        (!strcmp(name, names[version - 1][0]) || !strcmp(name, names[version - 1][1])))
      sum += bytes;
  if (file) fclose(file);
  return sum;
}

static void visit(void *context, const char *directory, int version) {
  struct look *look = context;
  const uint64_t limit = number_in(directory, version == 2 ? "memory.max" : "memory.limit_in_bytes");
  if (limit == NO_LIMIT) return;
  uint64_t used = number_in(directory, version == 2 ? "memory.current" : "memory.usage_in_bytes");
  if (used == NO_LIMIT) used = 0;
  if (used + look->enough > limit) {
    const uint64_t files = file_pages(directory, version);
    used -= files < used ? files : used;
  }
  const uint64_t left = used < limit ? limit - used : 0;
  if (left < look->least) look->least = left;
}

uint64_t smc_memory_left(const char *meminfo, const char *membership, const char *root, uint64_t enough) {
  struct look look = {.enough = enough, .least = UINT64_MAX};
  FILE *file = fopen(meminfo, "re");
  char line[256];
  unsigned long long kibibytes;
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "MemAvailable: %llu kB", &kibibytes) == 1) {
      look.least = kibibytes * 1024;
      break;
    }
  if (file) fclose(file);
  smc_cgroup_levels(membership, root, "memory", visit, &look);
  return look.least;
}

uint64_t smc_available_memory(uint64_t enough) {
  return smc_memory_left("/proc/meminfo", "/proc/self/cgroup", "/sys/fs/cgroup", enough);
}
