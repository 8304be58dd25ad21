/* Sequences as bytes: a header; where the model has windows, the tokens and the pages that each group holds; then the
 * pages. */
#include "internal.h"

#include <string.h>

/* The head of a saved sequence. */
struct saved {
  char magic[8];
  char weights_hash[64]; /* K and V are meaningless to another model */
  int32_t page_tokens, kv_dtype, length, group_count;
  uint64_t page_bytes; /* of all groups */
  uint8_t zeros[32];
};
_Static_assert(sizeof(struct saved) == 128, "the header of a saved sequence has 128 bytes");

static struct saved saved_header(const struct smc_kv_cache *cache, int32_t length) {
  const struct smc_program *program = cache->program;
  struct saved header = {.magic = "SMC-KV2",
                         .page_tokens = SMC_PAGE_TOKENS,
                         .kv_dtype = cache->kv_dtype,
                         .length = length,
                         .group_count = cache->group_count};
  for (int32_t i = 0; i < cache->group_count; i++) header.page_bytes += cache->groups[i].page_bytes;
  const size_t bytes = strlen(program->weights_hash);
  memcpy(header.weights_hash, program->weights_hash,
         bytes < sizeof header.weights_hash ? bytes : sizeof header.weights_hash);
  return header;
}

/* Bytes between header and pages: tokens, and a span per group. */
static uint64_t past_bytes(const struct smc_kv_cache *cache, int32_t length) {
  if (!cache->past) return 0;
  return (uint64_t)length * sizeof *cache->past + (uint64_t)cache->group_count * sizeof(struct smc_kv_span);
}

/* Zeros what lies behind the first `tokens` tokens of a page: remains of tokens that were truncated. */
static void clear_tail(const struct smc_kv_shape *shape, int32_t kv_dtype, uint8_t *page, int32_t tokens) {
  const uint64_t element = smc_kv_element_bytes(kv_dtype), head_dim = (uint64_t)shape->head_dim_padded;
  const uint64_t half = SMC_PAGE_TOKENS * head_dim * element, group = 16 * element, used = (uint64_t)tokens;
  const uint64_t bytes = smc_kv_bytes(shape->head_dim_padded, kv_dtype, 2 * SMC_PAGE_TOKENS * head_dim);
  for (int64_t head = 0; head < (int64_t)shape->layers * shape->kv_heads; head++, page += bytes) {
    for (uint64_t g = used / 16; g < SMC_PAGE_TOKENS / 16; g++) { /* K [4][head_dim][16 tokens] */
      const uint64_t kept = g == used / 16 ? used % 16 * element : 0;
      for (uint64_t row = 0; row < head_dim; row++) memset(page + (g * head_dim + row) * group + kept, 0, group - kept);
    }
    memset(page + half + used * head_dim * element, 0, half - used * head_dim * element); /* V [64][head_dim] */
    for (uint8_t *scales = page + 2 * half; scales < page + bytes;
         scales += SMC_PAGE_TOKENS * sizeof(float)) /* K's, V's */
      memset(scales + used * sizeof(float), 0, (SMC_PAGE_TOKENS - used) * sizeof(float));
  }
}

int smc_kv_save(const struct smc_kv_cache *cache, int32_t sequence, void *buffer, uint64_t *size, char *error) {
  const int32_t length = cache->sequences[sequence].length;
  const struct saved header = saved_header(cache, length);
  const uint64_t given = *size;
  *size = sizeof header + past_bytes(cache, length);
  for (int32_t i = 0; i < cache->group_count; i++) {
    const struct smc_kv_span span = cache->groups[i].spans[sequence];
    *size += (uint64_t)(span.end - span.begin) * cache->groups[i].page_bytes;
  }
  if (!buffer) return SMC_OK;
  if (given < *size)
    return smc_fail(error, SMC_BAD_INPUT, "the buffer has %llu bytes where the saved sequence needs %llu",
                    (unsigned long long)given, (unsigned long long)*size);
  memcpy(buffer, &header, sizeof header);
  uint8_t *out = (uint8_t *)buffer + sizeof header;
  if (cache->past) {
    const uint64_t bytes = (uint64_t)length * sizeof *cache->past;
    memcpy(out, cache->past + (int64_t)sequence * cache->context_length, bytes);
    out += bytes;
    for (int32_t i = 0; i < cache->group_count; i++, out += sizeof(struct smc_kv_span))
      memcpy(out, &cache->groups[i].spans[sequence], sizeof(struct smc_kv_span));
  }
  for (int32_t i = 0; i < cache->group_count; i++) {
    const struct smc_kv_group *group = &cache->groups[i];
    for (int32_t page = group->spans[sequence].begin; page < group->spans[sequence].end;
         page++, out += group->page_bytes) {
      const uint8_t *place = group->data + (uint64_t)smc_kv_table(cache, group, sequence)[page] * group->page_bytes;
      const int status = smc_pages_read(cache->device, out, place, group->page_bytes, error);
      if (status) return status;
      if ((page + 1) * SMC_PAGE_TOKENS > length)
        clear_tail(group->shape, cache->kv_dtype, out, length % SMC_PAGE_TOKENS);
    }
  }
  return SMC_OK;
}

/* The pages that each group will hold, and the bytes of all: SMC_OK if a sequence of `length` tokens can have them. */
static int read_spans(const struct smc_kv_cache *cache, const uint8_t *in, int32_t length, struct smc_kv_span *spans,
                      uint64_t *bytes) {
  *bytes = 0;
  for (int32_t i = 0; i < cache->group_count; i++) {
    const struct smc_kv_group *group = &cache->groups[i];
    spans[i] = (struct smc_kv_span){0, smc_kv_pages_for(length)};
    if (cache->past) memcpy(&spans[i], in + (size_t)i * sizeof *spans, sizeof *spans);
    const int empty = group->window && spans[i].begin == 0 && spans[i].end == 0;
    if (!empty && (spans[i].begin < 0 || spans[i].begin > spans[i].end || spans[i].end != smc_kv_pages_for(length)))
      return SMC_BAD_INPUT;
    if ((!group->window && spans[i].begin) || spans[i].end - spans[i].begin > group->most_pages) return SMC_BAD_INPUT;
    *bytes += (uint64_t)(spans[i].end - spans[i].begin) * group->page_bytes;
  }
  return SMC_OK;
}

static int check_past(const struct smc_kv_cache *cache, const uint8_t *in, int32_t length) {
  for (int32_t i = 0; i < length; i++) {
    struct smc_past_token token;
    memcpy(&token, in + (size_t)i * sizeof token, sizeof token);
    if (token.token < 0 || token.token >= cache->program->vocab_size || token.position < 0) return SMC_BAD_INPUT;
  }
  return SMC_OK;
}

int smc_kv_restore(struct smc_kv_cache *cache, const void *buffer, uint64_t size, char *error) {
  struct saved header;
  if (size < sizeof header)
    return smc_fail(error, SMC_BAD_INPUT, "%llu bytes are not a saved sequence", (unsigned long long)size);
  memcpy(&header, buffer, sizeof header);
  const struct saved expected = saved_header(cache, header.length);
  if (memcmp(header.magic, expected.magic, sizeof header.magic))
    return smc_fail(error, SMC_BAD_INPUT, "these bytes are not a saved sequence");
  if (memcmp(&header, &expected, sizeof header))
    return smc_fail(error, SMC_BAD_INPUT, "the saved sequence is from another model, KV dtype or version of smc");
  if (header.length < 0 || header.length > cache->context_length)
    return smc_fail(error, header.length < 0 ? SMC_BAD_INPUT : SMC_NO_SPACE,
                    "the saved sequence has %d tokens and the context %d", header.length, cache->context_length);
  const uint64_t front = sizeof header + past_bytes(cache, header.length);
  const uint8_t *in = (const uint8_t *)buffer + sizeof header;
  const uint64_t past = cache->past ? (uint64_t)header.length * sizeof *cache->past : 0;
  struct smc_kv_span spans[SMC_MAX_KV_GROUPS];
  uint64_t bytes = 0;
  if (size < front || (past && check_past(cache, in, header.length)) ||
      read_spans(cache, in + past, header.length, spans, &bytes) || size != front + bytes)
    return smc_fail(error, SMC_BAD_INPUT, "the saved sequence is damaged or incomplete: %llu bytes for %d tokens",
                    (unsigned long long)size, header.length);
  const int status = smc_kv_check_memory(cache, bytes, error);
  if (status) return status;
  const int32_t sequence = smc_kv_create(cache, error);
  if (sequence < 0) return sequence;
  cache->sequences[sequence].length = header.length;
  if (past) memcpy(cache->past + (int64_t)sequence * cache->context_length, in, past);
  in = (const uint8_t *)buffer + front;
  for (int32_t i = 0; i < cache->group_count; i++) {
    struct smc_kv_group *group = &cache->groups[i];
    group->spans[sequence] = spans[i];
    for (int32_t page = spans[i].begin; page < spans[i].end; page++, in += group->page_bytes) {
      const int32_t own = smc_kv_table(cache, group, sequence)[page] = smc_kv_take_page(group);
      const int written =
          smc_pages_write(cache->device, group->data + (uint64_t)own * group->page_bytes, in, group->page_bytes, error);
      if (!written) continue;
      smc_kv_drop(cache, sequence);
      return written;
    }
  }
  smc_kv_shorten(cache, sequence, header.length); /* stale if a window lacks K and V */
  return sequence;
}
