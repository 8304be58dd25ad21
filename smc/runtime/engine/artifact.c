/* The artifact: a ZIP file whose members are stored as they are, mapped once from its beginning.
 *
 * Nothing is read before it is known to lie inside the file, so a cut or damaged file is a sentence. Only the directory
 * is looked at; the program does not read the manifest. See "4.3 General Format" of PKWARE's APPNOTE.TXT. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static uint64_t little(const uint8_t *bytes, int count) {
  uint64_t value = 0;
  for (int i = count - 1; i >= 0; i--) value = value << 8 | bytes[i];
  return value;
}

static int inside(uint64_t offset, uint64_t length, uint64_t size) { return offset <= size && length <= size - offset; }

enum { END_BYTES = 22, ZIP64_END_BYTES = 56, LOCATOR_BYTES = 20, ENTRY_BYTES = 46, LOCAL_BYTES = 30, COMMENT_BYTES = 65535 };

struct directory {
  uint64_t offset, size, entries;
};

/* The directory's place, from the end record or its 64-bit form. */
static int find_directory(const uint8_t *data, uint64_t size, struct directory *directory) {
  if (size < END_BYTES) return 0;
  uint64_t end = size - END_BYTES;
  const uint64_t lowest = end > COMMENT_BYTES ? end - COMMENT_BYTES : 0;
  while (memcmp(data + end, "PK\5\6", 4) || end + END_BYTES + little(data + end + 20, 2) != size)
    if (end-- == lowest) return 0;
  if (little(data + end + 4, 4)) return 0; /* split over several disks */
  *directory = (struct directory){little(data + end + 16, 4), little(data + end + 12, 4), little(data + end + 10, 2)};
  if (end >= LOCATOR_BYTES && !memcmp(data + end - LOCATOR_BYTES, "PK\6\7", 4)) {
    const uint64_t record = little(data + end - LOCATOR_BYTES + 8, 8);
    if (!inside(record, ZIP64_END_BYTES, end - LOCATOR_BYTES) || memcmp(data + record, "PK\6\6", 4)) return 0;
    *directory = (struct directory){little(data + record + 48, 8), little(data + record + 40, 8), little(data + record + 32, 8)};
    end = record;
  }
  return inside(directory->offset, directory->size, end);
}

struct member {
  uint64_t local, stored, length;
  uint32_t flags, method;
};

/* Takes the 64-bit values that replace 0xffffffff from an entry's extra fields. */
static int read_zip64(const uint8_t *extra, uint64_t bytes, struct member *member) {
  uint64_t *const values[] = {&member->length, &member->stored, &member->local};
  for (uint64_t at = 0; inside(at, 4, bytes);) {
    const uint64_t length = little(extra + at + 2, 2), tag = little(extra + at, 2);
    if (!inside(at + 4, length, bytes)) return 0;
    if (tag == 1) {
      uint64_t used = 0;
      for (int i = 0; i < 3; i++) {
        if (*values[i] != UINT32_MAX) continue;
        if (!inside(used, 8, length)) return 0;
        *values[i] = little(extra + at + 4 + used, 8);
        used += 8;
      }
    }
    at += 4 + length;
  }
  return 1;
}

int smc_zip_find(const uint8_t *data, uint64_t size, const char *name, uint64_t *offset, uint64_t *length, char *error) {
  struct directory directory;
  if (!find_directory(data, size, &directory))
    return smc_fail(error, SMC_BAD_INPUT, "it is cut short or no artifact: its directory is missing or points outside the file");
  int found = 0;
  uint64_t at = directory.offset;
  const uint64_t end = directory.offset + directory.size;
  for (uint64_t i = 0; i < directory.entries; i++) {
    if (!inside(at, ENTRY_BYTES, end) || memcmp(data + at, "PK\1\2", 4))
      return smc_fail(error, SMC_BAD_INPUT, "its directory is damaged at entry %llu", (unsigned long long)i);
    const uint8_t *entry = data + at, *entry_name = entry + ENTRY_BYTES;
    const uint64_t name_bytes = little(entry + 28, 2), extra_bytes = little(entry + 30, 2), comment_bytes = little(entry + 32, 2);
    struct member member = {little(entry + 42, 4), little(entry + 20, 4), little(entry + 24, 4),
                            (uint32_t)little(entry + 8, 2), (uint32_t)little(entry + 10, 2)};
    if (!inside(at + ENTRY_BYTES, name_bytes + extra_bytes + comment_bytes, end) ||
        !read_zip64(entry_name + name_bytes, extra_bytes, &member))
      return smc_fail(error, SMC_BAD_INPUT, "its directory is damaged at entry %llu", (unsigned long long)i);
    const int shown = name_bytes > 64 ? 64 : (int)name_bytes;
    if (!inside(member.local, LOCAL_BYTES, directory.offset) || memcmp(data + member.local, "PK\3\4", 4))
      return smc_fail(error, SMC_BAD_INPUT, "its member '%.*s' is missing", shown, (const char *)entry_name);
    const uint64_t header = LOCAL_BYTES + little(data + member.local + 26, 2) + little(data + member.local + 28, 2);
    if (!inside(member.local + header, member.stored, directory.offset))
      return smc_fail(error, SMC_BAD_INPUT, "its member '%.*s' is cut short", shown, (const char *)entry_name);
    at += ENTRY_BYTES + name_bytes + extra_bytes + comment_bytes;
    if (name_bytes != strlen(name) || memcmp(entry_name, name, name_bytes)) continue;
    if (found++) return smc_fail(error, SMC_BAD_INPUT, "it has two members '%s'", name);
    if (member.method || member.stored != member.length || (member.flags & 1))
      return smc_fail(error, SMC_BAD_INPUT, "its member '%s' is compressed or encrypted, not stored", name);
    *offset = member.local + header;
    *length = member.length;
  }
  if (at != end) return smc_fail(error, SMC_BAD_INPUT, "its directory has another size than it says");
  if (!found) return smc_fail(error, SMC_BAD_INPUT, "it has no member '%s'", name);
  return SMC_OK;
}

static int find_weights(struct smc_artifact *artifact, uint64_t weight_bytes, char *error) {
  uint64_t offset;
  const int status = smc_zip_find(artifact->data, artifact->size, "weights", &offset, &artifact->weight_bytes, error);
  if (status) return status;
  if (artifact->weight_bytes != weight_bytes)
    return smc_fail(error, SMC_BAD_INPUT, "its weights are %llu bytes where its program wants %llu: they are of different models",
                    (unsigned long long)artifact->weight_bytes, (unsigned long long)weight_bytes);
  if (offset % SMC_MEMBER_ALIGNMENT) return smc_fail(error, SMC_BAD_INPUT, "its weights do not begin at a multiple of 64 KiB");
  artifact->weights = artifact->data + offset;
  /* The pages are read ahead while the caller goes on. */
  (void)madvise((void *)(uintptr_t)artifact->weights, weight_bytes, MADV_WILLNEED);
  return SMC_OK;
}

int smc_artifact_map(struct smc_artifact *artifact, const char *path, char *error) {
  *artifact = (struct smc_artifact){0};
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return smc_fail(error, SMC_BAD_INPUT, "cannot open the artifact %s: %s", path, strerror(errno));
  struct stat facts;
  if (fstat(file, &facts) || !S_ISREG(facts.st_mode) || facts.st_size <= 0) {
    close(file);
    return smc_fail(error, SMC_BAD_INPUT, "%s is no artifact: it is empty or no regular file", path);
  }
  artifact->size = (uint64_t)facts.st_size;
  void *data = mmap(NULL, artifact->size, PROT_READ, MAP_SHARED, file, 0);
  const int cause = errno;
  close(file);
  if (data == MAP_FAILED) return smc_fail(error, cause == ENOMEM ? SMC_NO_MEMORY : SMC_FAILED, "cannot map the artifact %s: %s", path, strerror(cause));
  artifact->data = data;
  return SMC_OK;
}

int smc_artifact_open(struct smc_artifact *artifact, const char *path, uint64_t weight_bytes, char *error) {
  char reason[SMC_ERROR_BYTES];
  int status = smc_artifact_map(artifact, path, error);
  if (status) return status;
  status = find_weights(artifact, weight_bytes, reason);
  if (status) {
    smc_artifact_close(artifact);
    return smc_fail(error, status, "the artifact %s cannot be used: %s", path, reason);
  }
  return SMC_OK;
}

void smc_artifact_close(struct smc_artifact *artifact) {
  if (artifact->data) munmap((void *)(uintptr_t)artifact->data, artifact->size);
  *artifact = (struct smc_artifact){0};
}
