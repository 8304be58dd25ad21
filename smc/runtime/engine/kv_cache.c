/* The KV cache: pages of SMC_PAGE_TOKENS tokens for all layers and KV heads, reached through a block table a sequence.
 *
 * The region is reserved once for the worst case and gets memory when it is first written; pages that nobody uses go
 * back to the operating system, but for the few that are taken next. Sequences share pages (fork) until one writes to a
 * partly filled last page: it gets a copy of its own first. Full pages are never written again, so they need no copy. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEBIBYTE (1024.0 * 1024.0)
#define PAGE_ROUNDING 4096 /* so that a page can be given back */
/* So much memory of pages that nobody uses stays: the next prompt would get it back page fault by page fault, cleared each
 * time, which took 70 % of the time in which 512 tokens of a 135M model were written to the cache. */
#define KEPT_BYTES (16 << 20)
#if defined(__APPLE__)
#define GIVE_BACK MADV_FREE
#else
#define GIVE_BACK MADV_DONTNEED
#endif

static int32_t pages_for(int32_t tokens) { return (tokens + SMC_PAGE_TOKENS - 1) / SMC_PAGE_TOKENS; }

static int32_t *table_of(const struct smc_kv_cache *cache, int32_t sequence) {
  return cache->tables + (int64_t)sequence * cache->table_pages;
}

int smc_kv_open(struct smc_kv_cache *cache, const struct smc_program *program, int32_t context_length,
                int32_t sequences, int32_t kv_dtype, char *error) {
  *cache = (struct smc_kv_cache){.sequence_count = sequences, .table_pages = pages_for(context_length),
                                 .context_length = context_length, .kv_dtype = kv_dtype, .program = program};
  if ((int64_t)sequences * cache->table_pages > INT32_MAX / SMC_PAGE_TOKENS)
    return smc_fail(error, SMC_BAD_INPUT, "%d sequences of %d tokens are more than the KV cache can number: 2^31 tokens in all",
                    sequences, context_length);
  cache->page_count = sequences * cache->table_pages;
  const uint64_t layers = program->layers ? (uint64_t)program->layers : 1; /* without attention pages only count tokens */
  const uint64_t numbers = layers * (uint64_t)program->kv_heads * 2 * SMC_PAGE_TOKENS * (uint64_t)program->head_dim_padded;
  cache->page_bytes = smc_round_up(smc_kv_bytes(program, kv_dtype, numbers), PAGE_ROUNDING);
  const size_t pages = (size_t)cache->page_count;
  cache->tables = calloc(pages, sizeof *cache->tables);
  cache->references = calloc(pages, sizeof *cache->references);
  cache->free_pages = calloc(pages, sizeof *cache->free_pages);
  cache->sequences = calloc((size_t)sequences, sizeof *cache->sequences);
  void *data = mmap(NULL, pages * cache->page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  cache->data = data == MAP_FAILED ? NULL : data;
  if (cache->data) smc_advise_huge_pages(data, pages * cache->page_bytes);
  if (!cache->data || !cache->tables || !cache->references || !cache->free_pages || !cache->sequences) {
    const double mebibytes = (double)pages * (double)cache->page_bytes / MEBIBYTE;
    smc_kv_close(cache);
    return smc_fail(error, SMC_NO_MEMORY, "there is no room for a KV cache of up to %.0f MiB, %d x %d tokens: use a shorter context%s",
                    mebibytes, sequences, context_length, sequences > 1 ? " or fewer sequences" : "");
  }
  return SMC_OK;
}

void smc_kv_close(struct smc_kv_cache *cache) {
  if (cache->data) munmap(cache->data, (uint64_t)cache->page_count * cache->page_bytes);
  free(cache->tables);
  free(cache->references);
  free(cache->free_pages);
  free(cache->sequences);
  *cache = (struct smc_kv_cache){0};
}

/* ---- pages */

/* There is always one: a page in use is in the table of a sequence, and there are as many pages as table entries. */
static int32_t take_page(struct smc_kv_cache *cache) {
  const int32_t page = cache->free_count ? cache->free_pages[--cache->free_count] : cache->fresh++;
  cache->references[page] = 1;
  cache->pages_used++;
  return page;
}

static void give_back(struct smc_kv_cache *cache, int32_t page) {
  const uint64_t unit = (uint64_t)getpagesize(), begin = (uint64_t)page * cache->page_bytes;
  const uint64_t first = smc_round_up(begin, unit), last = (begin + cache->page_bytes) / unit * unit;
  if (last > first) (void)madvise(cache->data + first, last - first, GIVE_BACK);
}

/* The pages that are taken next keep their memory: the last that came free. */
static void release_page(struct smc_kv_cache *cache, int32_t page) {
  if (--cache->references[page]) return;
  cache->free_pages[cache->free_count++] = page;
  cache->pages_used--;
  const uint64_t kept = KEPT_BYTES / cache->page_bytes;
  if ((uint64_t)cache->free_count > kept) give_back(cache, cache->free_pages[(uint64_t)cache->free_count - 1 - kept]);
}

static void keep_pages(struct smc_kv_cache *cache, int32_t sequence, int32_t count) {
  struct smc_sequence *entry = &cache->sequences[sequence];
  while (entry->pages > count) release_page(cache, table_of(cache, sequence)[--entry->pages]);
}

uint64_t smc_available_memory(void) {
  FILE *file = fopen("/proc/meminfo", "re");
  if (!file) return UINT64_MAX;
  char line[256];
  unsigned long long kibibytes = UINT64_MAX / 1024;
  while (fgets(line, sizeof line, file))
    if (sscanf(line, "MemAvailable: %llu kB", &kibibytes) == 1) break;
  fclose(file);
  return kibibytes * 1024;
}

/* Overcommitted memory ends in a killed process; here it ends in a sentence. */
static int check_memory(const struct smc_kv_cache *cache, int64_t pages, char *error) {
  if (pages == 0) return SMC_OK;
  const uint64_t wanted = (uint64_t)pages * cache->page_bytes, available = smc_available_memory();
  if (wanted <= available) return SMC_OK;
  return smc_fail(error, SMC_NO_MEMORY,
                  "the KV cache needs another %.0f MiB and the machine has %.0f MiB left: use a shorter context, fewer sequences%s",
                  (double)wanted / MEBIBYTE, (double)available / MEBIBYTE, cache->kv_dtype == SMC_KV_F32 ? " or an f16 cache" : cache->kv_dtype == SMC_KV_F16 ? " or an i8 cache" : "");
}

/* ---- sequences */

int smc_kv_check(const struct smc_kv_cache *cache, int32_t sequence, char *error) {
  if (sequence < 0 || sequence >= cache->sequence_count)
    return smc_fail(error, SMC_BAD_INPUT, "sequence %d does not exist: this model has slots 0 to %d", sequence, cache->sequence_count - 1);
  if (!cache->sequences[sequence].live) return smc_fail(error, SMC_BAD_INPUT, "sequence %d was not created, or was dropped", sequence);
  return SMC_OK;
}

int smc_kv_create(struct smc_kv_cache *cache, char *error) {
  for (int32_t i = 0; i < cache->sequence_count; i++)
    if (!cache->sequences[i].live) {
      cache->sequences[i] = (struct smc_sequence){.live = 1};
      return i;
    }
  return smc_fail(error, SMC_NO_SPACE, "all %d sequence slots are in use: drop one, or open the model with more", cache->sequence_count);
}

int smc_kv_fork(struct smc_kv_cache *cache, int32_t sequence, char *error) {
  const int copy = smc_kv_create(cache, error);
  if (copy < 0) return copy;
  cache->sequences[copy] = cache->sequences[sequence];
  for (int32_t i = 0; i < cache->sequences[copy].pages; i++)
    cache->references[table_of(cache, copy)[i] = table_of(cache, sequence)[i]]++;
  return copy;
}

void smc_kv_truncate(struct smc_kv_cache *cache, int32_t sequence, int32_t length) {
  cache->sequences[sequence].length = length;
  keep_pages(cache, sequence, pages_for(length));
}

void smc_kv_drop(struct smc_kv_cache *cache, int32_t sequence) {
  smc_kv_truncate(cache, sequence, 0);
  cache->sequences[sequence].live = 0;
}

/* ---- a batch */

static int writes_shared_page(const struct smc_kv_cache *cache, int32_t sequence) {
  const struct smc_sequence *entry = &cache->sequences[sequence];
  if (!entry->pending || entry->length % SMC_PAGE_TOKENS == 0) return 0;
  return cache->references[table_of(cache, sequence)[entry->pages - 1]] > 1;
}

int smc_kv_reserve(struct smc_kv_cache *cache, char *error) {
  int64_t wanted = 0;
  for (int32_t i = 0; i < cache->sequence_count; i++) {
    const struct smc_sequence *entry = &cache->sequences[i];
    wanted += pages_for(entry->length + entry->pending) - entry->pages + writes_shared_page(cache, i);
  }
  const int status = check_memory(cache, wanted, error);
  if (status) return status;
  for (int32_t i = 0; i < cache->sequence_count; i++) {
    struct smc_sequence *entry = &cache->sequences[i];
    int32_t *table = table_of(cache, i);
    if (writes_shared_page(cache, i)) {
      const int32_t shared = table[entry->pages - 1], own = take_page(cache);
      memcpy(cache->data + (uint64_t)own * cache->page_bytes, cache->data + (uint64_t)shared * cache->page_bytes, cache->page_bytes);
      table[entry->pages - 1] = own;
      release_page(cache, shared);
    }
    while (entry->pages < pages_for(entry->length + entry->pending)) table[entry->pages++] = take_page(cache);
  }
  return SMC_OK;
}

void smc_kv_finish(struct smc_kv_cache *cache, int success) {
  for (int32_t i = 0; i < cache->sequence_count; i++) {
    struct smc_sequence *entry = &cache->sequences[i];
    if (!entry->pending) continue;
    if (success) entry->length += entry->pending;
    entry->pending = 0;
    keep_pages(cache, i, pages_for(entry->length));
  }
}

/* ---- save and restore */

/* What a saved sequence begins with; whole pages follow, zeros behind the last token. */
struct saved {
  char magic[8];
  char weights_hash[64]; /* K and V mean nothing to another model */
  int32_t layers, kv_heads, head_dim_padded, page_tokens, kv_dtype, length;
  uint64_t page_bytes;
  uint8_t zeros[24];
};
_Static_assert(sizeof(struct saved) == 128, "the header of a saved sequence has 128 bytes");

static struct saved saved_header(const struct smc_kv_cache *cache, int32_t length) {
  const struct smc_program *program = cache->program;
  struct saved header = {.magic = "SMC-KV1", .layers = program->layers, .kv_heads = program->kv_heads,
                         .head_dim_padded = program->head_dim_padded, .page_tokens = SMC_PAGE_TOKENS,
                         .kv_dtype = cache->kv_dtype, .length = length, .page_bytes = cache->page_bytes};
  const size_t bytes = strlen(program->weights_hash);
  memcpy(header.weights_hash, program->weights_hash, bytes < sizeof header.weights_hash ? bytes : sizeof header.weights_hash);
  return header;
}

/* Zeros what lies behind the first `tokens` tokens of a page: remains of tokens that were truncated. */
static void clear_tail(const struct smc_kv_cache *cache, uint8_t *page, int32_t tokens) {
  const struct smc_program *program = cache->program;
  const uint64_t element = smc_kv_element_bytes(cache->kv_dtype), head_dim = (uint64_t)program->head_dim_padded;
  const uint64_t half = SMC_PAGE_TOKENS * head_dim * element, group = 16 * element, used = (uint64_t)tokens;
  const uint64_t bytes = smc_kv_bytes(program, cache->kv_dtype, 2 * SMC_PAGE_TOKENS * head_dim);
  for (int64_t head = 0; head < (int64_t)program->layers * program->kv_heads; head++, page += bytes) {
    for (uint64_t g = used / 16; g < SMC_PAGE_TOKENS / 16; g++) { /* K [4][head_dim][16 tokens] */
      const uint64_t kept = g == used / 16 ? used % 16 * element : 0;
      for (uint64_t row = 0; row < head_dim; row++) memset(page + (g * head_dim + row) * group + kept, 0, group - kept);
    }
    memset(page + half + used * head_dim * element, 0, half - used * head_dim * element); /* V [64][head_dim] */
    for (uint8_t *scales = page + 2 * half; scales < page + bytes; scales += SMC_PAGE_TOKENS * sizeof(float)) /* K's, V's */
      memset(scales + used * sizeof(float), 0, (SMC_PAGE_TOKENS - used) * sizeof(float));
  }
}

int smc_kv_save(const struct smc_kv_cache *cache, int32_t sequence, void *buffer, uint64_t *size, char *error) {
  const int32_t length = cache->sequences[sequence].length, pages = pages_for(length);
  const struct saved header = saved_header(cache, length);
  const uint64_t given = *size;
  *size = sizeof header + (uint64_t)pages * cache->page_bytes;
  if (!buffer) return SMC_OK;
  if (given < *size)
    return smc_fail(error, SMC_BAD_INPUT, "the buffer has %llu bytes where the saved sequence needs %llu",
                    (unsigned long long)given, (unsigned long long)*size);
  memcpy(buffer, &header, sizeof header);
  uint8_t *out = (uint8_t *)buffer + sizeof header;
  for (int32_t i = 0; i < pages; i++, out += cache->page_bytes) {
    memcpy(out, cache->data + (uint64_t)table_of(cache, sequence)[i] * cache->page_bytes, cache->page_bytes);
    if ((i + 1) * SMC_PAGE_TOKENS > length) clear_tail(cache, out, length % SMC_PAGE_TOKENS);
  }
  return SMC_OK;
}

int smc_kv_restore(struct smc_kv_cache *cache, const void *buffer, uint64_t size, char *error) {
  struct saved header;
  if (size < sizeof header) return smc_fail(error, SMC_BAD_INPUT, "%llu bytes are no saved sequence", (unsigned long long)size);
  memcpy(&header, buffer, sizeof header);
  const struct saved expected = saved_header(cache, header.length);
  if (memcmp(header.magic, expected.magic, sizeof header.magic)) return smc_fail(error, SMC_BAD_INPUT, "these bytes are no saved sequence");
  if (memcmp(&header, &expected, sizeof header))
    return smc_fail(error, SMC_BAD_INPUT, "the saved sequence is of another model, KV dtype or version of smc");
  if (header.length < 0 || header.length > cache->context_length)
    return smc_fail(error, header.length < 0 ? SMC_BAD_INPUT : SMC_NO_SPACE, "the saved sequence has %d tokens and the context %d",
                    header.length, cache->context_length);
  const int32_t pages = pages_for(header.length);
  if (size != sizeof header + (uint64_t)pages * cache->page_bytes)
    return smc_fail(error, SMC_BAD_INPUT, "the saved sequence is cut short or too long: %llu bytes for %d tokens",
                    (unsigned long long)size, header.length);
  int status = check_memory(cache, pages, error);
  if (status) return status;
  const int32_t sequence = smc_kv_create(cache, error);
  if (sequence < 0) return sequence;
  struct smc_sequence *entry = &cache->sequences[sequence];
  const uint8_t *in = (const uint8_t *)buffer + sizeof header;
  for (; entry->pages < pages; in += cache->page_bytes) {
    const int32_t page = table_of(cache, sequence)[entry->pages++] = take_page(cache);
    memcpy(cache->data + (uint64_t)page * cache->page_bytes, in, cache->page_bytes);
  }
  entry->length = header.length;
  return sequence;
}

/* ---- in a step */

void smc_kv_ahead(const struct smc_thread *thread, const struct smc_step *step, int64_t head, int32_t kv_heads,
                  int32_t head_dim_padded) {
  const uint64_t row = (uint64_t)head_dim_padded * smc_kv_element_bytes(step->kv_dtype), half = SMC_PAGE_TOKENS * row;
  const uint64_t scales = step->kv_dtype == SMC_KV_I8 ? 2 * SMC_PAGE_TOKENS * sizeof(float) : 0;
  const uint64_t page = (uint64_t)step->cache_slots[0] / SMC_PAGE_TOKENS, token = (uint64_t)step->cache_slots[0] % SMC_PAGE_TOKENS;
  const struct smc_share share = smc_share_of(kv_heads, thread->count, thread->index);
  for (int64_t i = 0; i < share.size; i++) {
    const uint8_t *k = step->kv + page * step->kv_page_bytes + (uint64_t)(head + share.first + i) * (2 * half + scales);
    const uint8_t *group = k + token / 16 * 16 * row, *v = k + half + token * row; /* K's lines each have 16 tokens */
    for (uint64_t at = 0; at < 16 * row; at += SMC_PREFETCHED) __builtin_prefetch(group + at, 1);
    for (uint64_t at = 0; at < row; at += SMC_PREFETCHED) __builtin_prefetch(v + at, 1);
  }
}
