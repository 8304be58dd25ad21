/* The artifact: a ZIP file whose members are stored as they are, mapped once from its beginning.
 *
 * Nothing is read before it is known to lie inside the file, so a cut or damaged file gives a sentence. Only the
 * directory and the weights are read, and the weights must have their checksum before a step uses them; the manifest is
 * not read. See "4.3 General Format" of PKWARE's APPNOTE.TXT. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHECKED_BYTES (1 << 20) /* between two checks for a cancellation */

static uint64_t little(const uint8_t *bytes, int count) {
  uint64_t value = 0;
  for (int i = count - 1; i >= 0; i--) value = value << 8 | bytes[i];
  return value;
}

static int inside(uint64_t offset, uint64_t length, uint64_t size) { return offset <= size && length <= size - offset; }

enum {
  END_BYTES = 22,
  ZIP64_END_BYTES = 56,
  LOCATOR_BYTES = 20,
  ENTRY_BYTES = 46,
  LOCAL_BYTES = 30,
  COMMENT_BYTES = 65535
};

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
    *directory =
        (struct directory){little(data + record + 48, 8), little(data + record + 40, 8), little(data + record + 32, 8)};
    end = record;
  }
  return inside(directory->offset, directory->size, end);
}

/* An entry of the directory. */
struct entry {
  const char *name;
  uint64_t name_bytes;
  uint64_t local, stored, length;
  uint32_t flags, method, crc;
  uint64_t data; /* where the member's bytes begin */
};

/* Takes the 64-bit values that replace 0xffffffff from an entry's extra fields. */
static int read_zip64(const uint8_t *extra, uint64_t bytes, struct entry *member) {
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

/* Reads the entry at *at, which is before `end`, and checks that its member lies inside; *at moves on. */
static int read_entry(const uint8_t *data, const struct directory *directory, uint64_t number, uint64_t *at,
                      struct entry *entry, char *error) {
  const uint64_t end = directory->offset + directory->size;
  if (!inside(*at, ENTRY_BYTES, end) || memcmp(data + *at, "PK\1\2", 4))
    return smc_fail(error, SMC_BAD_INPUT, "its directory is damaged at entry %llu", (unsigned long long)number);
  const uint8_t *fields = data + *at, *name = fields + ENTRY_BYTES;
  const uint64_t name_bytes = little(fields + 28, 2), extra_bytes = little(fields + 30, 2),
                 comment_bytes = little(fields + 32, 2);
  *entry = (struct entry){.name = (const char *)name,
                          .name_bytes = name_bytes,
                          .local = little(fields + 42, 4),
                          .stored = little(fields + 20, 4),
                          .length = little(fields + 24, 4),
                          .flags = (uint32_t)little(fields + 8, 2),
                          .method = (uint32_t)little(fields + 10, 2),
                          .crc = (uint32_t)little(fields + 16, 4)};
  if (!inside(*at + ENTRY_BYTES, name_bytes + extra_bytes + comment_bytes, end) ||
      !read_zip64(name + name_bytes, extra_bytes, entry))
    return smc_fail(error, SMC_BAD_INPUT, "its directory is damaged at entry %llu", (unsigned long long)number);
  const int shown = name_bytes > 64 ? 64 : (int)name_bytes;
  if (!inside(entry->local, LOCAL_BYTES, directory->offset) || memcmp(data + entry->local, "PK\3\4", 4))
    return smc_fail(error, SMC_BAD_INPUT, "its member '%.*s' is missing", shown, entry->name);
  entry->data = entry->local + LOCAL_BYTES + little(data + entry->local + 26, 2) + little(data + entry->local + 28, 2);
  if (!inside(entry->data, entry->stored, directory->offset))
    return smc_fail(error, SMC_BAD_INPUT, "its member '%.*s' is incomplete", shown, entry->name);
  *at += ENTRY_BYTES + name_bytes + extra_bytes + comment_bytes;
  return SMC_OK;
}

static int open_directory(const uint8_t *data, uint64_t size, struct directory *directory, char *error) {
  if (find_directory(data, size, directory)) return SMC_OK;
  return smc_fail(error, SMC_BAD_INPUT,
                  "it is incomplete or not an artifact: its directory is missing or points outside the file");
}

static int take_stored(const struct entry *entry, struct smc_member *member, char *error) {
  if (entry->method || entry->stored != entry->length || (entry->flags & 1))
    return smc_fail(error, SMC_BAD_INPUT, "its member '%.*s' is compressed or encrypted, not stored",
                    entry->name_bytes > 64 ? 64 : (int)entry->name_bytes, entry->name);
  *member = (struct smc_member){entry->data, entry->length, entry->crc};
  return SMC_OK;
}

int smc_zip_find(const uint8_t *data, uint64_t size, const char *name, struct smc_member *member, char *error) {
  struct directory directory;
  struct entry entry;
  int status = open_directory(data, size, &directory, error), found = 0;
  if (status) return status;
  uint64_t at = directory.offset;
  for (uint64_t i = 0; i < directory.entries; i++) {
    if ((status = read_entry(data, &directory, i, &at, &entry, error))) return status;
    if (entry.name_bytes != strlen(name) || memcmp(entry.name, name, entry.name_bytes)) continue;
    if (found++) return smc_fail(error, SMC_BAD_INPUT, "it has two members '%s'", name);
    if ((status = take_stored(&entry, member, error))) return status;
  }
  if (at != directory.offset + directory.size)
    return smc_fail(error, SMC_BAD_INPUT, "the size of its directory is wrong");
  if (!found) return smc_fail(error, SMC_BAD_INPUT, "it has no member '%s'", name);
  return SMC_OK;
}

int smc_zip_member(const uint8_t *data, uint64_t size, uint64_t index, char *name, struct smc_member *member,
                   char *error) {
  struct directory directory;
  struct entry entry;
  int status = open_directory(data, size, &directory, error);
  if (status) return status;
  if (index >= directory.entries) return SMC_NO_SPACE;
  uint64_t at = directory.offset;
  for (uint64_t i = 0; i <= index; i++)
    if ((status = read_entry(data, &directory, i, &at, &entry, error))) return status;
  const uint64_t shown = entry.name_bytes < SMC_NAME_BYTES ? entry.name_bytes : SMC_NAME_BYTES - 1;
  memcpy(name, entry.name, shown);
  name[shown] = 0;
  return take_stored(&entry, member, error);
}

static int find_weights(struct smc_artifact *artifact, uint64_t weight_bytes, char *error) {
  struct smc_member member;
  const int status = smc_zip_find(artifact->data, artifact->size, "weights", &member, error);
  if (status) return status;
  artifact->weight_bytes = member.length;
  artifact->crc = member.crc;
  if (artifact->weight_bytes != weight_bytes)
    return smc_fail(error, SMC_BAD_INPUT,
                    "its weights have %llu bytes and its program needs %llu: they are from different models",
                    (unsigned long long)artifact->weight_bytes, (unsigned long long)weight_bytes);
  if (member.offset % SMC_MEMBER_ALIGNMENT)
    return smc_fail(error, SMC_BAD_INPUT, "its weights do not begin at a multiple of 64 KiB");
  artifact->weights = artifact->data + member.offset;
  /* The pages are read ahead while the caller goes on. */
  (void)madvise((void *)(uintptr_t)artifact->weights, weight_bytes, MADV_WILLNEED);
  return SMC_OK;
}

/* Reads the whole file into memory of its own: some file systems map none. */
static int read_file(struct smc_artifact *artifact, int file, const char *path, char *error) {
  if (artifact->size > smc_available_memory(artifact->size))
    return smc_fail(error, SMC_NO_MEMORY,
                    "the artifact %s does not fit into memory, and its file system can't map files: copy it to another",
                    path);
  uint8_t *data = mmap(NULL, artifact->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return smc_fail(error, SMC_NO_MEMORY, "there is no memory for the artifact %s", path);
  smc_advise_huge_pages(data, artifact->size);
  artifact->data = data;
  for (uint64_t done = 0; done < artifact->size;) {
    const ssize_t got = pread(file, data + done, artifact->size - done, (off_t)done);
    if (got > 0) done += (uint64_t)got;
    else if (got == 0) return smc_fail(error, SMC_BAD_INPUT, "the artifact %s became shorter while it was read", path);
    else if (errno != EINTR)
      return smc_fail(error, SMC_BAD_INPUT, "can't read the artifact %s: %s", path, strerror(errno));
  }
  return SMC_OK;
}

int smc_artifact_map(struct smc_artifact *artifact, const char *path, char *error) {
  *artifact = (struct smc_artifact){0};
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return smc_fail(error, SMC_BAD_INPUT, "can't open the artifact %s: %s", path, strerror(errno));
  struct stat facts;
  if (fstat(file, &facts) || !S_ISREG(facts.st_mode) || facts.st_size <= 0) {
    close(file);
    return smc_fail(error, SMC_BAD_INPUT, "%s is not an artifact: it is empty or not a regular file", path);
  }
  artifact->size = (uint64_t)facts.st_size;
  /* A shared mapping is faster, by a quarter of the time of copying; not all file systems have it. */
  void *data = mmap(NULL, artifact->size, PROT_READ, MAP_SHARED, file, 0);
  if (data == MAP_FAILED && errno != ENOMEM) data = mmap(NULL, artifact->size, PROT_READ, MAP_PRIVATE, file, 0);
  int status = SMC_OK;
  if (data != MAP_FAILED) artifact->data = data;
  else if (errno == ENOMEM)
    status = smc_fail(error, SMC_NO_MEMORY, "can't map the artifact %s: %s", path, strerror(errno));
  else status = read_file(artifact, file, path, error);
  close(file);
  if (status) smc_artifact_close(artifact);
  return status;
}

int smc_artifact_open(struct smc_artifact *artifact, const char *path, uint64_t weight_bytes, char *error) {
  char reason[SMC_ERROR_BYTES];
  int status = smc_artifact_map(artifact, path, error);
  if (status) return status;
  status = find_weights(artifact, weight_bytes, reason);
  if (status) {
    smc_artifact_close(artifact);
    return smc_fail(error, status, "the artifact %s can't be used: %s", path, reason);
  }
  return SMC_OK;
}

int smc_artifact_check(struct smc_artifact *artifact, const _Atomic uint32_t *cancels, uint32_t seen, char *error) {
  uint32_t crc = 0;
  for (uint64_t done = 0, part; done < artifact->weight_bytes; done += part) {
    if (atomic_load(cancels) != seen) return smc_fail(error, SMC_CANCELLED, "the step was cancelled");
    part = artifact->weight_bytes - done < CHECKED_BYTES ? artifact->weight_bytes - done : CHECKED_BYTES;
    crc = smc_crc32(crc, artifact->weights + done, part);
  }
  if (crc != artifact->crc) return smc_artifact_damaged(error);
  artifact->checked = 1;
  return SMC_OK;
}

void smc_artifact_close(struct smc_artifact *artifact) {
  if (artifact->data) munmap((void *)(uintptr_t)artifact->data, artifact->size);
  *artifact = (struct smc_artifact){0};
}
