/* Byte pair encoding: of all neighbours, those with the lowest rank become one, the leftmost first, until none has a
 * rank. Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (2016). */
#include "tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#define NO_RANK UINT32_MAX
#define NONE UINT32_MAX

/* A list in both directions: a symbol that was joined to its left neighbour has no token, -1. */
struct symbol {
  int32_t token;
  uint32_t previous, next; /* NONE at the ends */
  uint32_t start, end;     /* bytes of the text */
  uint32_t rank;           /* of joining it with the next one */
};

struct smc_merger {
  struct symbol *symbols;
  size_t count, capacity;
  uint64_t *heap; /* rank << 32 | place, smallest first; those whose symbol has another rank by now are skipped */
  size_t heap_count, heap_capacity;
};

struct smc_merger *smc_merger_open(void) { return calloc(1, sizeof(struct smc_merger)); }

void smc_merger_close(struct smc_merger *merger) {
  if (!merger) return;
  free(merger->symbols);
  free(merger->heap);
  free(merger);
}

/* ---- the heap of candidates */

static int heap_push(struct smc_merger *merger, uint64_t item) {
  if (merger->heap_count == merger->heap_capacity) {
    const size_t capacity = merger->heap_capacity ? merger->heap_capacity * 2 : 256;
    uint64_t *const heap = realloc(merger->heap, capacity * sizeof *heap);
    if (!heap) return 0;
    merger->heap = heap;
    merger->heap_capacity = capacity;
  }
  size_t place = merger->heap_count++;
  for (; place > 0 && merger->heap[(place - 1) / 2] > item; place = (place - 1) / 2)
    merger->heap[place] = merger->heap[(place - 1) / 2];
  merger->heap[place] = item;
  return 1;
}

static uint64_t heap_pop(struct smc_merger *merger) {
  const uint64_t top = merger->heap[0], last = merger->heap[--merger->heap_count];
  size_t place = 0;
  for (size_t child; (child = 2 * place + 1) < merger->heap_count; place = child) {
    if (child + 1 < merger->heap_count && merger->heap[child + 1] < merger->heap[child]) child++;
    if (merger->heap[child] >= last) break;
    merger->heap[place] = merger->heap[child];
  }
  merger->heap[place] = last;
  return top;
}

/* ---- from text to symbols */

static int add(struct smc_merger *merger, int32_t token, size_t start, size_t end) {
  if (merger->count == merger->capacity) {
    const size_t capacity = merger->capacity ? merger->capacity * 2 : 256;
    struct symbol *const symbols = realloc(merger->symbols, capacity * sizeof *symbols);
    if (!symbols) return 0;
    merger->symbols = symbols;
    merger->capacity = capacity;
  }
  const uint32_t place = (uint32_t)merger->count++;
  merger->symbols[place] = (struct symbol){token, place - 1, place + 1, (uint32_t)start, (uint32_t)end, NO_RANK};
  return 1;
}

static int32_t symbol_of(const struct smc_tokenizer *tokenizer, uint32_t character) {
  if (character < 256) return tokenizer->low_symbols[character];
  size_t low = 0, high = tokenizer->header->symbols.count;
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (tokenizer->symbols[middle].character == character) return tokenizer->symbols[middle].token;
    if (tokenizer->symbols[middle].character < character) low = middle + 1;
    else high = middle;
  }
  return -1;
}

/* Writes a character as bytes where every one of them has a token: 1, 0 where not, -1 without memory. */
static int add_bytes(const struct smc_tokenizer *tokenizer, struct smc_merger *merger, const uint8_t *bytes,
                     size_t start, size_t end) {
  if (!(tokenizer->header->model & SMC_MODEL_BYTE_FALLBACK)) return 0;
  for (size_t i = start; i < end; i++)
    if (tokenizer->byte_tokens[bytes[i]] < 0) return 0;
  for (size_t i = start; i < end; i++)
    if (!add(merger, tokenizer->byte_tokens[bytes[i]], i, i + 1)) return -1;
  return 1;
}

/* The symbols of a piece; 0 without memory. An unknown token comes when the next known character does, after bytes that
 * stand between: so does `tokenizers`. */
static int add_symbols(const struct smc_tokenizer *tokenizer, struct smc_merger *merger, const uint8_t *bytes,
                       size_t start, size_t end) {
  const uint32_t model = tokenizer->header->model;
  size_t unknown_start = 0, unknown_end = 0; /* what waits to be an unknown token, nothing where equal */
  merger->count = 0;
  for (size_t at = start, next; at < end; at = next) {
    next = at + (model & SMC_MODEL_BYTE_LEVEL ? 1 : smc_utf8_length(bytes[at]));
    const int32_t token =
        symbol_of(tokenizer, model & SMC_MODEL_BYTE_LEVEL ? bytes[at] : smc_utf8_character(bytes + at));
    if (token < 0) {
      const int written = add_bytes(tokenizer, merger, bytes, at, next);
      if (written < 0) return 0;
      if (written || tokenizer->header->unknown < 0) continue;
      if (unknown_end > unknown_start && !(model & SMC_MODEL_FUSE_UNKNOWN)) {
        if (!add(merger, tokenizer->header->unknown, unknown_start, unknown_end)) return 0;
        unknown_end = unknown_start;
      }
      if (unknown_end <= unknown_start) unknown_start = at;
      unknown_end = next;
      continue;
    }
    if (unknown_end > unknown_start && !add(merger, tokenizer->header->unknown, unknown_start, unknown_end)) return 0;
    unknown_end = unknown_start;
    if (!add(merger, token, at, next)) return 0;
  }
  if (unknown_end > unknown_start && !add(merger, tokenizer->header->unknown, unknown_start, unknown_end)) return 0;
  if (merger->count) merger->symbols[merger->count - 1].next = NONE;
  return 1;
}

/* ---- merging */

static uint32_t rank_of(const struct smc_tokenizer *tokenizer, int32_t left, int32_t right) {
  const uint64_t pair = (uint64_t)left << 20 | (uint64_t)right;
  const uint32_t bits = tokenizer->header->hash_bits;
  const uint64_t bucket = bits ? pair * UINT64_C(0x9e3779b97f4a7c15) >> (64 - bits) : 0;
  for (uint32_t i = tokenizer->buckets[bucket]; i < tokenizer->buckets[bucket + 1]; i++)
    if (tokenizer->merges[i] >> 24 == pair) return tokenizer->merges[i] & 0xffffff;
  return NO_RANK;
}

/* Looks up the rank of a symbol with its next one, and makes it a candidate; 0 without memory. */
static int consider(const struct smc_tokenizer *tokenizer, struct smc_merger *merger, uint32_t place) {
  struct symbol *const symbol = merger->symbols + place;
  symbol->rank =
      symbol->next == NONE ? NO_RANK : rank_of(tokenizer, symbol->token, merger->symbols[symbol->next].token);
  return symbol->rank == NO_RANK || heap_push(merger, (uint64_t)symbol->rank << 32 | place);
}

static int merge_all(const struct smc_tokenizer *tokenizer, struct smc_merger *merger) {
  struct symbol *const symbols = merger->symbols;
  merger->heap_count = 0;
  for (size_t i = 0; i < merger->count; i++)
    if (!consider(tokenizer, merger, (uint32_t)i)) return 0;
  while (merger->heap_count) {
    const uint64_t top = heap_pop(merger);
    struct symbol *const left = symbols + (uint32_t)top;
    if (left->token < 0 || left->rank != top >> 32) continue;
    struct symbol *const right = symbols + left->next;
    left->token = tokenizer->merged[left->rank];
    left->end = right->end;
    left->next = right->next;
    right->token = -1;
    if (left->next != NONE) symbols[left->next].previous = (uint32_t)top;
    if (!consider(tokenizer, merger, (uint32_t)top)) return 0;
    if (left->previous != NONE && !consider(tokenizer, merger, left->previous)) return 0;
  }
  return 1;
}

/* ---- pieces that are a token as they are */

static int32_t word_of(const struct smc_tokenizer *tokenizer, const uint8_t *bytes, size_t length) {
  uint64_t hash = UINT64_C(0xcbf29ce484222325); /* FNV-1a */
  for (size_t i = 0; i < length; i++) hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
  const uint32_t bits = tokenizer->header->word_bits;
  const uint64_t bucket = bits ? hash * UINT64_C(0x9e3779b97f4a7c15) >> (64 - bits) : 0;
  for (uint32_t i = tokenizer->word_buckets[bucket]; i < tokenizer->word_buckets[bucket + 1]; i++) {
    const uint32_t start = tokenizer->token_starts[tokenizer->words[i]],
                   end = tokenizer->token_starts[tokenizer->words[i] + 1];
    if (end - start == length && !memcmp(tokenizer->bytes + start, bytes, length)) return tokenizer->words[i];
  }
  return -1;
}

/* Appends a token that the model made of text[start..end); control tokens only of text that may become them. */
static int emit(const struct smc_tokenizer *tokenizer, int32_t token, const struct smc_string *text, size_t start,
                size_t end, struct smc_numbers *tokens, char *error) {
  const uint8_t flags = tokenizer->token_flags[token];
  if (flags & SMC_TOKEN_CONTROL && token != tokenizer->header->unknown)
    for (size_t i = start; i < end; i++)
      if (!(text->authors[i] & smc_token_authors(flags))) {
        const uint32_t at = tokenizer->token_starts[token], length = tokenizer->token_starts[token + 1] - at;
        return smc_fail(error, SMC_BAD_INPUT,
                        "a message contains the text of the special token '%.*s', which this tokenizer can't write as "
                        "ordinary text; remove it from the message",
                        length > 64 ? 64 : (int)length, (const char *)tokenizer->bytes + at);
      }
  smc_numbers_push(tokens, (uint32_t)token);
  return SMC_OK;
}

/* Where the word at `at` ends, which no merge crosses: a run of word starts and what follows up to the next one. */
static size_t word_end(const struct smc_tokenizer *tokenizer, const uint8_t *bytes, size_t at, size_t end) {
  const uint8_t *const mark = tokenizer->bytes + tokenizer->header->word_start.offset;
  const size_t length = tokenizer->header->word_start.length;
  if (length == 0) return end;
  while (end - at >= length && !memcmp(bytes + at, mark, length)) at += length;
  return smc_find_text(bytes, at, end, mark, length);
}

int smc_merge(const struct smc_tokenizer *tokenizer, struct smc_merger *merger, const struct smc_string *text,
              size_t start, size_t end, struct smc_numbers *tokens, char *error) {
  if (tokenizer->header->model & SMC_MODEL_IGNORE_MERGES) {
    const int32_t word = word_of(tokenizer, text->bytes + start, end - start);
    if (word >= 0) return emit(tokenizer, word, text, start, end, tokens, error);
  }
  for (size_t at = start, next; at < end; at = next) {
    next = word_end(tokenizer, text->bytes, at, end);
    if (!add_symbols(tokenizer, merger, text->bytes, at, next) || !merge_all(tokenizer, merger))
      return smc_fail(error, SMC_NO_MEMORY, "no memory for the tokens of a text of %zu bytes", end - start);
    for (uint32_t i = merger->count ? 0 : NONE; i != NONE; i = merger->symbols[i].next) {
      const struct symbol *const symbol = merger->symbols + i;
      const int status = emit(tokenizer, symbol->token, text, symbol->start, symbol->end, tokens, error);
      if (status) return status;
    }
  }
  return SMC_OK;
}
