/* Text to tokens: added tokens are found, what lies between is normalized, cut into pieces and merged.
 *
 * Each step does what the `tokenizers` library does, whose documentation has the words: added tokens, normalizer,
 * pre-tokenizer, model, post-processor. */
#include "tokenizer_internal.h"
#include "tokenizer_unicode.h"

#include <stdlib.h>
#include <string.h>

/* ---- open: nothing in the tables is believed */

static const char DAMAGED[] = "the tokenizer's tables are damaged: %s";

/* A section of `width`-byte elements as a pointer, or NULL where it leaves the tables or is not aligned. */
static const void *section(const struct smc_tokenizer_header *header, struct smc_section place, size_t width) {
  const size_t alignment = width < 8 ? width : width % 8 ? 4 : 8;
  if (place.offset % alignment || place.offset > header->size || place.count > (header->size - place.offset) / width)
    return NULL;
  return (const uint8_t *)header + place.offset;
}

static int valid_utf8(const uint8_t *bytes, size_t length) {
  for (size_t at = 0; at < length;) {
    int valid;
    at += smc_utf8_check(bytes + at, length - at, &valid);
    if (!valid) return 0;
  }
  return 1;
}

static int valid_text(const struct smc_tokenizer *t, struct smc_span text, uint32_t most) {
  const uint32_t size = t->header->bytes.count;
  return text.offset <= size && text.length <= size - text.offset && text.length <= most &&
         valid_utf8(t->bytes + text.offset, text.length);
}

static int rising(const uint32_t *values, size_t count, uint32_t last) {
  for (size_t i = 0; i < count; i++)
    if (values[i] > (i + 1 < count ? values[i + 1] : last)) return 0;
  return count == 0 || values[count - 1] == last;
}

/* Whether these are ids of tokens, or -1 where `optional`. */
static int valid_tokens(const struct smc_tokenizer *t, const int32_t *tokens, size_t count, int optional) {
  for (size_t i = 0; i < count; i++) {
    if (optional && tokens[i] == -1) continue;
    if (tokens[i] < 0 || (uint32_t)tokens[i] >= t->token_count || !(t->token_flags[tokens[i]] & SMC_TOKEN_EXISTS))
      return 0;
  }
  return 1;
}

static int valid_steps(const struct smc_tokenizer *t, const struct smc_text_step *steps, uint32_t count,
                       uint32_t lowest, uint32_t highest) {
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t kind = steps[i].kind;
    if (kind < lowest || kind > highest || !valid_text(t, steps[i].first, SMC_STEP_BYTES) ||
        !valid_text(t, steps[i].second, SMC_STEP_BYTES))
      return 0;
    const int known = kind <= SMC_STEP_PREPEND || kind == SMC_STEP_PREPEND_SPACE || kind == SMC_STEP_METASPACE ||
                      kind >= SMC_STEP_SPLIT_TEXT;
    const int needs_text = kind == SMC_STEP_REPLACE || kind == SMC_STEP_METASPACE || kind == SMC_STEP_SPLIT_TEXT ||
                           kind == SMC_STEP_SPLIT_LINES;
    if (!known || (needs_text && steps[i].first.length == 0)) return 0;
  }
  return 1;
}

static int compare_added(const struct smc_tokenizer *t, const struct smc_added *a, const struct smc_added *b) {
  const uint32_t length = a->pattern.length < b->pattern.length ? a->pattern.length : b->pattern.length;
  const int order = memcmp(t->bytes + a->pattern.offset, t->bytes + b->pattern.offset, length);
  return order ? order : (a->pattern.length > b->pattern.length) - (a->pattern.length < b->pattern.length);
}

/* Checks the added tokens and notes where those begin that share a first byte. */
static int index_added(struct smc_tokenizer *t) {
  const uint32_t count = t->header->added.count;
  uint32_t place = 0;
  for (uint32_t i = 0; i < count; i++) {
    const struct smc_added *const added = t->added + i;
    if (!valid_text(t, added->content, UINT32_MAX) || !valid_text(t, added->pattern, UINT32_MAX) ||
        added->pattern.length == 0 || added->prefix > added->pattern.length || !valid_tokens(t, &added->id, 1, 0))
      return 0;
    const int before = i > 0 && (t->added[i - 1].flags & SMC_ADDED_NORMALIZED),
              normalized = (added->flags & SMC_ADDED_NORMALIZED) != 0;
    if (before > normalized || (i > 0 && before == normalized && compare_added(t, added - 1, added) >= 0)) return 0;
  }
  for (int normalized = 0; normalized < 2; normalized++) {
    for (uint32_t byte = 0; byte <= 256; byte++) {
      while (place < count && ((t->added[place].flags & SMC_ADDED_NORMALIZED) != 0) == normalized &&
             t->bytes[t->added[place].pattern.offset] < byte)
        place++;
      t->added_first[normalized][byte] = place;
    }
  }
  return 1;
}

static int index_symbols(struct smc_tokenizer *t) {
  memset(t->low_symbols, -1, sizeof t->low_symbols);
  for (uint32_t i = 0; i < t->header->symbols.count; i++) {
    const struct smc_symbol *const symbol = t->symbols + i;
    if ((i > 0 && symbol[-1].character >= symbol->character) || !valid_tokens(t, &symbol->token, 1, 0)) return 0;
    if (symbol->character < 256) t->low_symbols[symbol->character] = symbol->token;
  }
  return 1;
}

static int find_sections(struct smc_tokenizer *t) {
  const struct smc_tokenizer_header *const h = t->header;
  t->token_count = h->token_flags.count;
  return (t->bytes = section(h, h->bytes, 1)) && (t->token_starts = section(h, h->token_starts, 4)) &&
         (t->token_flags = section(h, h->token_flags, 1)) &&
         (t->symbols = section(h, h->symbols, sizeof *t->symbols)) &&
         (t->byte_tokens = section(h, h->byte_tokens, 4)) && (t->buckets = section(h, h->buckets, 4)) &&
         (t->merges = section(h, h->merges, 8)) && (t->merged = section(h, h->merged, 4)) &&
         (t->word_buckets = section(h, h->word_buckets, 4)) && (t->words = section(h, h->words, 4)) &&
         (t->added = section(h, h->added, sizeof *t->added)) &&
         (t->normalizer = section(h, h->normalizer, sizeof *t->normalizer)) &&
         (t->splitter = section(h, h->splitter, sizeof *t->splitter)) && (t->prefix = section(h, h->prefix, 4)) &&
         (t->suffix = section(h, h->suffix, 4));
}

static const char *find_fault(struct smc_tokenizer *t) {
  const struct smc_tokenizer_header *const h = t->header;
  if (!find_sections(t)) return "a section leaves them";
  if (t->token_count > 1u << 20 || h->token_starts.count != t->token_count + 1 ||
      t->token_starts[t->token_count] > h->bytes.count ||
      !rising(t->token_starts, h->token_starts.count, t->token_starts[t->token_count]))
    return "texts of tokens";
  if (!valid_tokens(t, &h->unknown, 1, 1) || !valid_tokens(t, t->prefix, h->prefix.count, 0) ||
      !valid_tokens(t, t->suffix, h->suffix.count, 0))
    return "the unknown token or those around a text";
  if (h->byte_tokens.count != (h->model & SMC_MODEL_BYTE_FALLBACK ? 256u : 0) ||
      !valid_tokens(t, t->byte_tokens, h->byte_tokens.count, 1))
    return "tokens of bytes";
  if (h->hash_bits > 24 || h->buckets.count != (1u << h->hash_bits) + 1 ||
      !rising(t->buckets, h->buckets.count, h->merges.count) || h->merged.count != h->merges.count ||
      !valid_tokens(t, t->merged, h->merged.count, 0))
    return "merges";
  for (uint32_t i = 0; i < h->merges.count; i++)
    if ((t->merges[i] & 0xffffff) >= h->merged.count) return "ranks of merges";
  const int words = (h->model & SMC_MODEL_IGNORE_MERGES) != 0;
  if (h->word_bits > 24 || h->word_buckets.count != (words ? (1u << h->word_bits) + 1 : 0) ||
      !rising(t->word_buckets, h->word_buckets.count, h->words.count) || !valid_tokens(t, t->words, h->words.count, 0))
    return "words";
  if (!valid_steps(t, t->normalizer, h->normalizer.count, SMC_STEP_NFC, SMC_STEP_PREPEND) ||
      !valid_steps(t, t->splitter, h->splitter.count, SMC_STEP_PREPEND_SPACE, SMC_STEP_SPLIT_O200K))
    return "steps";
  if (!valid_text(t, h->decode_from, SMC_STEP_BYTES) || !valid_text(t, h->decode_to, SMC_STEP_BYTES) ||
      (h->decode_from.length == 0 && h->decoder & SMC_DECODE_REPLACE))
    return "decoding";
  if (!valid_text(t, h->word_start, SMC_STEP_BYTES)) return "the start of words";
  if (!index_symbols(t)) return "symbols";
  return index_added(t) ? NULL : "added tokens";
}

int smc_tokenizer_open(struct smc_tokenizer **tokenizer, const void *tables, size_t size, char *error) {
  const struct smc_tokenizer_header *const header = tables;
  *tokenizer = NULL;
  if (size < sizeof *header || (uintptr_t)tables % 8 || header->magic != SMC_TOKENIZER_MAGIC || header->size != size)
    return smc_fail(error, SMC_BAD_INPUT, DAMAGED, "they are incomplete or something else");
  if (header->version != SMC_TOKENIZER_VERSION)
    return smc_fail(error, SMC_BAD_INPUT, "the tokenizer's tables have version %u where this engine reads %u",
                    header->version, SMC_TOKENIZER_VERSION);
  struct smc_tokenizer *const made = calloc(1, sizeof *made);
  if (!made) return smc_fail(error, SMC_NO_MEMORY, "no memory for a tokenizer");
  made->header = header;
  const char *const fault = find_fault(made);
  if (fault) {
    free(made);
    return smc_fail(error, SMC_BAD_INPUT, DAMAGED, fault);
  }
  *tokenizer = made;
  return SMC_OK;
}

void smc_tokenizer_close(struct smc_tokenizer *tokenizer) { free(tokenizer); }

int32_t smc_tokenizer_find(const struct smc_tokenizer *t, const char *text, size_t length) {
  for (uint32_t i = 0; i < t->header->added.count; i++)
    if (t->added[i].content.length == length && !memcmp(t->bytes + t->added[i].content.offset, text, length))
      return t->added[i].id;
  return -1;
}

/* ---- added tokens in a text */

/* Whether the token may be made of all of text[start..end) (1), of none (0) or of a part (-1). */
static int allowed(const struct smc_tokenizer *t, int32_t token, const struct smc_string *text, size_t start,
                   size_t end) {
  const uint8_t flags = t->token_flags[token];
  if (!(flags & SMC_TOKEN_CONTROL) || start >= end) return 1;
  const int authors = smc_token_authors(flags), first = (text->authors[start] & authors) != 0;
  for (size_t i = start + 1; i < end; i++)
    if (((text->authors[i] & authors) != 0) != first) return -1;
  return first;
}

/* The longest added token at text[at], or NULL. A control token that begins in one text and ends in another is none. */
static const struct smc_added *longest_added(const struct smc_tokenizer *t, const struct smc_string *text, size_t at,
                                             int normalized) {
  const uint32_t *const first = t->added_first[normalized];
  const struct smc_added *best = NULL;
  uint32_t low = first[text->bytes[at]], high = first[text->bytes[at] + 1];
  for (uint32_t depth = 1; low < high; depth++) { /* those in low..high agree with the text in so many bytes */
    const struct smc_added *const candidate = t->added + low;
    if (candidate->pattern.length == depth) {
      if (allowed(t, candidate->id, text, at + candidate->prefix, at + depth) >= 0) best = candidate;
      low++;
    }
    if (at + depth == text->length) break;
    const uint8_t byte = text->bytes[at + depth];
    for (int upper = 0; upper < 2; upper++) { /* narrow to those with this byte next: they are sorted */
      uint32_t from = low, to = high;
      while (from < to) {
        const uint32_t middle = from + (to - from) / 2;
        if (t->bytes[t->added[middle].pattern.offset + depth] < byte + upper) from = middle + 1;
        else to = middle;
      }
      if (upper) high = from;
      else low = from;
    }
  }
  return best;
}

static size_t previous_character(const struct smc_string *text, size_t at) {
  do at--;
  while ((text->bytes[at] & 0xc0) == 0x80);
  return at;
}

static int has_class(const struct smc_string *text, size_t at, uint32_t class) {
  return (smc_character_classes(smc_utf8_character(text->bytes + at)) & class) != 0;
}

/* A place of an added token, with the white space that it takes along. */
struct place {
  size_t start, end;
  int32_t id;
};

struct search {
  const struct smc_tokenizer *tokenizer;
  const struct smc_string *text;
  int normalized;
  size_t at, done; /* where to look on: after the last token; where its place ended: after white space, too */
};

/* Finds the next added token; without one the place is the end of the text and the result 0. */
static int next_added(struct search *search, struct place *place) {
  const struct smc_string *const text = search->text;
  while (search->at < text->length) {
    const struct smc_added *const added = longest_added(search->tokenizer, text, search->at, search->normalized);
    if (!added) {
      search->at++;
      continue;
    }
    size_t start = search->at, end = search->at + added->pattern.length;
    search->at = end;
    if (!allowed(search->tokenizer, added->id, text, start + added->prefix, end)) continue;
    if (added->flags & SMC_ADDED_SINGLE_WORD &&
        ((start > 0 && has_class(text, previous_character(text, start), SMC_WORD)) ||
         (end < text->length && has_class(text, end, SMC_WORD))))
      continue;
    if (added->flags & SMC_ADDED_LSTRIP) {
      while (start > 0 && has_class(text, previous_character(text, start), SMC_WHITE))
        start = previous_character(text, start);
      if (start < search->done) start = search->done;
    }
    if (added->flags & SMC_ADDED_RSTRIP)
      while (end < text->length && has_class(text, end, SMC_WHITE)) end += smc_utf8_length(text->bytes[end]);
    *place = (struct place){start, end, added->id};
    return 1;
  }
  *place = (struct place){text->length, text->length, -1};
  return 0;
}

/* ---- encode */

struct encoder {
  const struct smc_tokenizer *tokenizer;
  struct smc_merger *merger;
  struct smc_string whole, normalized, spare;
  struct smc_pieces pieces;
  struct smc_numbers tokens;
  char *error;
};

static int no_memory(const struct encoder *e) {
  return smc_fail(e->error, SMC_NO_MEMORY, "no memory for the tokens of a text of %zu bytes", e->whole.length);
}

/* What lies between added tokens: cut, and merged piece by piece. */
static int encode_plain(struct encoder *e, const struct smc_string *text, size_t start, size_t end, int first) {
  smc_string_clear(&e->pieces.text);
  smc_string_copy(&e->pieces.text, text, start, end);
  smc_split(e->tokenizer, &e->pieces, first);
  if (e->pieces.text.failed || e->pieces.spare.failed || e->pieces.ends.failed || e->pieces.spare_ends.failed)
    return no_memory(e);
  for (size_t i = 0, from = 0; i < e->pieces.ends.count; from = e->pieces.ends.values[i++]) {
    const int status =
        smc_merge(e->tokenizer, e->merger, &e->pieces.text, from, e->pieces.ends.values[i], &e->tokens, e->error);
    if (status) return status;
  }
  return SMC_OK;
}

/* Added tokens become themselves, what lies between them is encoded by `encode`. */
static int encode_parts(struct encoder *e, const struct smc_string *text, int normalized, int first,
                        int (*encode)(struct encoder *, const struct smc_string *, size_t, size_t, int)) {
  struct search search = {e->tokenizer, text, normalized, 0, 0};
  for (int found = 1; found;) {
    struct place place;
    found = next_added(&search, &place);
    if (search.done < place.start) {
      const int status = encode(e, text, search.done, place.start, first && search.done == 0);
      if (status) return status;
    }
    if (found) smc_numbers_push(&e->tokens, (uint32_t)place.id);
    search.done = place.end;
  }
  return SMC_OK;
}

/* What lies between added tokens of the text as it is: normalized, and searched for those of the normalized text. */
static int encode_normalized(struct encoder *e, const struct smc_string *text, size_t start, size_t end, int first) {
  const struct smc_tokenizer *const t = e->tokenizer;
  smc_string_clear(&e->normalized);
  smc_string_copy(&e->normalized, text, start, end);
  for (uint32_t i = 0; i < t->header->normalizer.count; i++) {
    const struct smc_text_step *const step = t->normalizer + i;
    const uint8_t *const one = t->bytes + step->first.offset, *const other = t->bytes + step->second.offset;
    if (step->kind == SMC_STEP_NFC) {
      smc_compose(&e->normalized, &e->spare);
    } else if (step->kind == SMC_STEP_REPLACE) {
      smc_replace_text(&e->normalized, &e->spare, one, step->first.length, other, step->second.length);
    } else {
      smc_string_clear(&e->spare);
      if (e->normalized.length) smc_string_append(&e->spare, one, step->first.length, e->normalized.authors[0]);
      smc_string_copy(&e->spare, &e->normalized, 0, e->normalized.length);
    }
    const struct smc_string spare = e->spare;
    e->spare = e->normalized;
    e->normalized = spare;
  }
  if (e->normalized.failed || e->spare.failed) return no_memory(e);
  return encode_parts(e, &e->normalized, 1, first, encode_plain);
}

static void push_all(struct smc_numbers *tokens, const int32_t *ids, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) smc_numbers_push(tokens, (uint32_t)ids[i]);
}

static int encode(struct encoder *e, const struct smc_text *texts, size_t count, int add_special) {
  const struct smc_tokenizer *const t = e->tokenizer;
  for (size_t i = 0; i < count; i++)
    smc_string_append_lossy(&e->whole, (const uint8_t *)texts[i].bytes, texts[i].length, (uint8_t)texts[i].author);
  if (e->whole.failed || !e->merger) return no_memory(e);
  if (add_special) push_all(&e->tokens, t->prefix, t->header->prefix.count);
  const int status = encode_parts(e, &e->whole, 0, 1, encode_normalized);
  if (status) return status;
  if (add_special) push_all(&e->tokens, t->suffix, t->header->suffix.count);
  if (!e->tokens.values) (void)smc_numbers_reserve(&e->tokens, 1); /* so that no tokens are not NULL */
  return e->tokens.failed ? no_memory(e) : SMC_OK;
}

int64_t smc_tokenizer_encode(const struct smc_tokenizer *tokenizer, const struct smc_text *texts, size_t count,
                             int add_special, int32_t **tokens, char *error) {
  struct encoder encoder = {.tokenizer = tokenizer, .merger = smc_merger_open(), .error = error};
  const int status = encode(&encoder, texts, count, add_special);
  smc_merger_close(encoder.merger);
  smc_string_free(&encoder.whole);
  smc_string_free(&encoder.normalized);
  smc_string_free(&encoder.spare);
  smc_pieces_free(&encoder.pieces);
  *tokens = (int32_t *)encoder.tokens.values;
  if (!status) return (int64_t)encoder.tokens.count;
  free(encoder.tokens.values);
  *tokens = NULL;
  return status;
}
