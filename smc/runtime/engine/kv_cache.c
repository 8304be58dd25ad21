/* The KV cache: pages of SMC_PAGE_TOKENS tokens, reached through a block table per sequence and group of layers.
 *
 * A group's region is reserved once for the worst case and gets memory when it is first written; unused pages go back
 * to the operating system, except for the few that are taken next. Sequences share pages (fork) until one writes to a
 * partly filled last page: it gets a copy of its own first. Full pages are never written with other values, so they
 * need no copy.
 *
 * A group with a window keeps the pages of the window and of SMC_KV_ROLLBACK tokens before it. A sequence that is
 * truncated further is stale: its tokens are kept, and computed again before its next step (step.c). */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MEBIBYTE (1024.0 * 1024.0)
#define PAGE_ROUNDING 4096 /* so that a page can be given back */
/* This much memory of unused pages stays. Else the next prompt would get it back, cleared, by page faults, which took
 * 70 % of the time of writing 512 tokens of a 135M model to the cache. */
#define KEPT_BYTES (16 << 20)
#define SPARE_BYTES (16 << 20) /* of memory that the cache leaves to the rest of the process */

/* ---- open */

/* How many pages a sequence holds at most: a window's, what can be rolled back, and a step's, cut anywhere. */
static int32_t most_pages(const struct smc_kv_cache *cache, int32_t window) {
  if (window == 0) return cache->table_pages;
  const int64_t tokens = (int64_t)window + SMC_KV_ROLLBACK + cache->program->max_step_tokens;
  const int64_t pages = (tokens + 2 * SMC_PAGE_TOKENS - 3) / SMC_PAGE_TOKENS;
  return pages < cache->table_pages ? (int32_t)pages : cache->table_pages;
}

static int open_group(struct smc_kv_group *group, const struct smc_kv_cache *cache, const struct smc_kv_shape *shape) {
  const uint64_t numbers =
      (uint64_t)shape->layers * (uint64_t)shape->kv_heads * 2 * SMC_PAGE_TOKENS * (uint64_t)shape->head_dim_padded;
  const size_t sequences = (size_t)cache->sequence_count;
  group->shape = shape;
  group->page_bytes = smc_round_up(smc_kv_bytes(shape->head_dim_padded, cache->kv_dtype, numbers), PAGE_ROUNDING);
  group->most_pages = most_pages(cache, shape->window);
  group->window = group->most_pages < cache->table_pages ? shape->window : 0;
  group->page_count = cache->sequence_count * group->most_pages;
  const size_t pages = (size_t)group->page_count;
  group->tables = calloc(sequences * (size_t)cache->table_pages, sizeof *group->tables);
  group->spans = calloc(sequences, sizeof *group->spans);
  group->references = calloc(pages, sizeof *group->references);
  group->free_pages = calloc(pages, sizeof *group->free_pages);
  group->data = smc_pages_reserve(cache->device, pages * group->page_bytes);
  return group->data && group->tables && group->spans && group->references && group->free_pages;
}

int smc_kv_open(struct smc_kv_cache *cache, const struct smc_program *program, struct smc_device *device,
                int32_t context_length, int32_t sequences, int32_t kv_dtype, char *error) {
  *cache = (struct smc_kv_cache){.group_count = program->kv_group_count,
                                 .sequence_count = sequences,
                                 .table_pages = smc_kv_pages_for(context_length),
                                 .context_length = context_length,
                                 .kv_dtype = kv_dtype,
                                 .program = program,
                                 .device = device};
  if ((int64_t)sequences * cache->table_pages > INT32_MAX / SMC_PAGE_TOKENS)
    return smc_fail(error, SMC_BAD_INPUT,
                    "%d sequences of %d tokens are more than the KV cache can have: 2^31 tokens in all", sequences,
                    context_length);
  double bytes = 0;
  int windows = 0, complete = 1;
  for (int32_t i = 0; i < cache->group_count; i++) {
    struct smc_kv_group *group = &cache->groups[i];
    complete &= open_group(group, cache, &program->kv_groups[i]);
    windows |= group->window > 0;
    bytes += (double)group->page_count * (double)group->page_bytes;
  }
  cache->sequences = calloc((size_t)sequences, sizeof *cache->sequences);
  if (windows) cache->past = calloc((size_t)sequences * (size_t)context_length, sizeof *cache->past);
  if (!complete || !cache->sequences || (windows && !cache->past)) {
    char note[96];
    smc_kv_close(cache);
    smc_pages_note(device, note, sizeof note);
    return smc_fail(error, SMC_NO_MEMORY,
                    "there is no room for a KV cache of up to %.0f MiB, %d x %d tokens%s: use a shorter context%s",
                    bytes / MEBIBYTE, sequences, context_length, note, sequences > 1 ? " or fewer sequences" : "");
  }
  return SMC_OK;
}

void smc_kv_close(struct smc_kv_cache *cache) {
  for (int32_t i = 0; i < cache->group_count; i++) {
    struct smc_kv_group *group = &cache->groups[i];
    if (group->data) smc_pages_free(cache->device, group->data, (uint64_t)group->page_count * group->page_bytes);
    free(group->tables);
    free(group->spans);
    free(group->references);
    free(group->free_pages);
  }
  free(cache->sequences);
  free(cache->past);
  *cache = (struct smc_kv_cache){0};
}

uint64_t smc_kv_bytes_per_token(const struct smc_kv_cache *cache) {
  uint64_t bytes = 0;
  for (int32_t i = 0; i < cache->group_count; i++) bytes += cache->groups[i].page_bytes / SMC_PAGE_TOKENS;
  return bytes;
}

uint64_t smc_kv_bytes_used(const struct smc_kv_cache *cache) {
  uint64_t bytes = 0;
  for (int32_t i = 0; i < cache->group_count; i++)
    bytes += (uint64_t)cache->groups[i].pages_used * cache->groups[i].page_bytes;
  return bytes;
}

/* ---- pages */

/* There is always one: a page in use is in the table of a sequence, and there are as many pages as entries in use. */
int32_t smc_kv_take_page(struct smc_kv_group *group) {
  const int32_t page = group->free_count ? group->free_pages[--group->free_count] : group->fresh++;
  group->references[page] = 1;
  group->pages_used++;
  return page;
}

/* The pages that are taken next keep their memory: the last that came free. */
static void release_page(const struct smc_kv_cache *cache, struct smc_kv_group *group, int32_t page) {
  if (--group->references[page]) return;
  group->free_pages[group->free_count++] = page;
  group->pages_used--;
  const uint64_t kept = KEPT_BYTES / group->page_bytes;
  if ((uint64_t)group->free_count <= kept) return;
  const uint64_t oldest = (uint64_t)group->free_pages[(uint64_t)group->free_count - 1 - kept];
  smc_pages_give_back(cache->device, group->data + oldest * group->page_bytes, group->page_bytes);
}

/* Of a sequence's pages in a group, keeps those from `begin` to `end`. */
static void keep_pages(const struct smc_kv_cache *cache, struct smc_kv_group *group, int32_t sequence, int32_t begin,
                       int32_t end) {
  struct smc_kv_span *span = &group->spans[sequence];
  const int32_t *table = smc_kv_table(cache, group, sequence);
  while (span->end > end && span->end > span->begin) release_page(cache, group, table[--span->end]);
  while (span->begin < begin && span->begin < span->end) release_page(cache, group, table[span->begin++]);
  if (span->begin == span->end) *span = (struct smc_kv_span){0, 0};
}

/* The page of the first cached token that is seen by the token at `index`, or by the tokens `many` before it. */
static int32_t first_page(const struct smc_kv_group *group, int32_t index, int32_t rollback) {
  const int32_t first = group->window ? index + 1 - group->window - rollback : 0;
  return first > 0 ? first / SMC_PAGE_TOKENS : 0;
}

/* Whether every window has what the token at `index`, the sequence's next, sees. */
static int windows_reach(const struct smc_kv_cache *cache, int32_t sequence, int32_t index) {
  for (int32_t i = 0; i < cache->group_count; i++) {
    const struct smc_kv_group *group = &cache->groups[i];
    const struct smc_kv_span *span = &group->spans[sequence];
    if (index && group->window && (span->begin > first_page(group, index, 0) || span->end < smc_kv_pages_for(index)))
      return 0;
  }
  return 1;
}

void smc_kv_shorten(struct smc_kv_cache *cache, int32_t sequence, int32_t length) {
  struct smc_sequence *entry = &cache->sequences[sequence];
  entry->length = length;
  for (int32_t i = 0; i < cache->group_count; i++)
    keep_pages(cache, &cache->groups[i], sequence, 0, smc_kv_pages_for(length));
  entry->stale = !windows_reach(cache, sequence, length);
  for (int32_t i = 0; entry->stale && i < cache->group_count; i++)
    if (cache->groups[i].window) keep_pages(cache, &cache->groups[i], sequence, 0, 0);
}

/* Overcommitted memory ends in a killed process; here it ends in a sentence. */
int smc_kv_check_memory(const struct smc_kv_cache *cache, uint64_t bytes, char *error) {
  if (bytes == 0) return SMC_OK;
  const uint64_t wanted = bytes + SPARE_BYTES, available = smc_pages_available(cache->device, wanted);
  if (wanted <= available) return SMC_OK;
  return smc_fail(error, SMC_NO_MEMORY,
                  "the KV cache needs another %.0f MiB and there are %.0f MiB left for it: use a shorter context, "
                  "fewer sequences%s",
                  (double)bytes / MEBIBYTE,
                  available > SPARE_BYTES ? (double)(available - SPARE_BYTES) / MEBIBYTE : 0.0,
                  cache->kv_dtype == SMC_KV_F32   ? " or an f16 cache"
                  : cache->kv_dtype == SMC_KV_F16 ? " or an i8 cache"
                                                  : "");
}

/* ---- sequences */

int smc_kv_check(const struct smc_kv_cache *cache, int32_t sequence, char *error) {
  if (sequence < 0 || sequence >= cache->sequence_count)
    return smc_fail(error, SMC_BAD_INPUT, "sequence %d does not exist: this model has slots 0 to %d", sequence,
                    cache->sequence_count - 1);
  if (!cache->sequences[sequence].live)
    return smc_fail(error, SMC_BAD_INPUT, "sequence %d was not created, or was dropped", sequence);
  return SMC_OK;
}

int smc_kv_create(struct smc_kv_cache *cache, char *error) {
  for (int32_t i = 0; i < cache->sequence_count; i++)
    if (!cache->sequences[i].live) {
      cache->sequences[i] = (struct smc_sequence){.live = 1};
      return i;
    }
  return smc_fail(error, SMC_NO_SPACE, "all %d sequence slots are in use: drop one, or open the model with more",
                  cache->sequence_count);
}

int smc_kv_fork(struct smc_kv_cache *cache, int32_t sequence, char *error) {
  const int copy = smc_kv_create(cache, error);
  if (copy < 0) return copy;
  cache->sequences[copy] = cache->sequences[sequence];
  for (int32_t i = 0; i < cache->group_count; i++) {
    struct smc_kv_group *group = &cache->groups[i];
    const struct smc_kv_span span = group->spans[copy] = group->spans[sequence];
    for (int32_t page = span.begin; page < span.end; page++)
      group->references[smc_kv_table(cache, group, copy)[page] = smc_kv_table(cache, group, sequence)[page]]++;
  }
  const int64_t context = cache->context_length;
  if (cache->past)
    memcpy(cache->past + copy * context, cache->past + sequence * context,
           (size_t)cache->sequences[copy].length * sizeof *cache->past);
  return copy;
}

void smc_kv_drop(struct smc_kv_cache *cache, int32_t sequence) {
  smc_kv_shorten(cache, sequence, 0);
  cache->sequences[sequence].live = 0;
}

/* ---- a batch */

/* Whether the next token's place is in a page that others read, too. */
static int writes_shared_page(const struct smc_kv_cache *cache, const struct smc_kv_group *group, int32_t sequence,
                              int32_t index) {
  const int32_t page = index / SMC_PAGE_TOKENS;
  return page < group->spans[sequence].end && group->references[smc_kv_table(cache, group, sequence)[page]] > 1;
}

int smc_kv_reserve(struct smc_kv_cache *cache, char *error) {
  uint64_t bytes = 0;
  for (int32_t i = 0; i < cache->sequence_count; i++) {
    const struct smc_sequence *entry = &cache->sequences[i];
    if (!entry->pending) continue;
    for (int32_t g = 0; g < cache->group_count; g++) {
      const struct smc_kv_group *group = &cache->groups[g];
      const int32_t held = group->spans[i].end - group->spans[i].begin,
                    last = smc_kv_pages_for(entry->length + entry->pending);
      const int32_t needed =
          last - group->spans[i].begin < group->most_pages ? last - group->spans[i].begin : group->most_pages;
      const int32_t more = (needed > held ? needed - held : 0) + writes_shared_page(cache, group, i, entry->length);
      bytes += (uint64_t)more * group->page_bytes;
    }
  }
  return smc_kv_check_memory(cache, bytes, error);
}

void smc_kv_slide(struct smc_kv_cache *cache, int32_t sequence, int32_t first) {
  for (int32_t i = 0; i < cache->group_count; i++) {
    struct smc_kv_group *group = &cache->groups[i];
    if (group->window) keep_pages(cache, group, sequence, first_page(group, first, SMC_KV_ROLLBACK), INT32_MAX);
  }
}

void smc_kv_extend(struct smc_kv_cache *cache, int32_t sequence, int32_t index) {
  const int32_t page = index / SMC_PAGE_TOKENS,
                again = index < cache->sequences[sequence].length; /* to the same bits */
  for (int32_t i = 0; i < cache->group_count; i++) {
    struct smc_kv_group *group = &cache->groups[i];
    struct smc_kv_span *span = &group->spans[sequence];
    int32_t *table = smc_kv_table(cache, group, sequence);
    if (page >= span->end) {
      if (span->begin == span->end) span->begin = page;
      span->end = page + 1;
      table[page] = smc_kv_take_page(group);
    } else if (!again && writes_shared_page(cache, group, sequence, index)) {
      const int32_t shared = table[page], own = smc_kv_take_page(group);
      smc_pages_copy(cache->device, group->data + (uint64_t)own * group->page_bytes,
                     group->data + (uint64_t)shared * group->page_bytes, group->page_bytes);
      table[page] = own;
      release_page(cache, group, shared);
    }
  }
}

void smc_kv_finish(struct smc_kv_cache *cache, int success) {
  for (int32_t i = 0; i < cache->sequence_count; i++) {
    struct smc_sequence *entry = &cache->sequences[i];
    if (!entry->pending) continue;
    const int32_t length = entry->length + (success ? entry->pending : 0);
    entry->pending = 0;
    if (success) entry->length = length;
    else smc_kv_shorten(cache, i, length);
  }
}

/* ---- in a step */

void smc_kv_prefetch(const struct smc_thread *thread, const struct smc_step *step, int32_t group, int64_t head,
                     int32_t kv_heads, int32_t head_dim_padded) {
  const struct smc_kv_pages *pages = &step->kv[group];
  const uint64_t row = (uint64_t)head_dim_padded * smc_kv_element_bytes(step->kv_dtype), half = SMC_PAGE_TOKENS * row;
  const uint64_t scales = step->kv_dtype == SMC_KV_I8 ? 2 * SMC_PAGE_TOKENS * sizeof(float) : 0;
  const uint64_t page = (uint64_t)pages->slots[0] / SMC_PAGE_TOKENS,
                 token = (uint64_t)pages->slots[0] % SMC_PAGE_TOKENS;
  const struct smc_share share = smc_share_of(kv_heads, thread->count, thread->index);
  for (int64_t i = 0; i < share.size; i++) {
    const uint8_t *k =
        pages->data + page * pages->page_bytes + (uint64_t)(head + share.first + i) * (2 * half + scales);
    const uint8_t *lines = k + token / 16 * 16 * row, *v = k + half + token * row; /* K's lines each have 16 tokens */
    for (uint64_t at = 0; at < 16 * row; at += SMC_PREFETCHED) __builtin_prefetch(lines + at, 1);
    for (uint64_t at = 0; at < row; at += SMC_PREFETCHED) __builtin_prefetch(v + at, 1);
  }
}
