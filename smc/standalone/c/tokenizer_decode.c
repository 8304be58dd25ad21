/* Tokens to text: all at once, or one by one while a model writes. */
#include "tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- all at once */

static const uint8_t REPLACEMENT[3] = {0xef, 0xbf, 0xbd}; /* U+FFFD */

static uint8_t hexadecimal(uint8_t digit) { return (uint8_t)(digit <= '9' ? digit - '0' : (digit | 32) - 'a' + 10); }

/* The text of a token in a UTF-8 vocabulary. */
static void append_token(const struct smc_tokenizer *t, struct smc_string *text, const uint8_t *bytes, size_t length,
                         int first) {
  const struct smc_tokenizer_header *const h = t->header;
  for (size_t at = 0; at < length;) {
    const size_t place = h->decoder & SMC_DECODE_REPLACE
                             ? smc_find_text(bytes, at, length, t->bytes + h->decode_from.offset, h->decode_from.length)
                             : length;
    smc_string_append(text, bytes + at, place - at, 1);
    if (place == length) break;
    if (!(first && h->decoder & SMC_DECODE_DROP_FIRST))
      smc_string_append(text, t->bytes + h->decode_to.offset, h->decode_to.length, 1);
    at = place + h->decode_from.length;
  }
}

/* Ends a run of byte tokens: all of it is characters, or none. */
static void append_run(struct smc_string *text, struct smc_string *run) {
  int all = 1;
  for (size_t at = 0; at < run->length && all;) at += smc_utf8_check(run->bytes + at, run->length - at, &all);
  if (all) smc_string_append(text, run->bytes, run->length, 1);
  for (size_t i = 0; i < run->length && !all; i++) smc_string_append(text, REPLACEMENT, sizeof REPLACEMENT, 1);
  smc_string_clear(run);
}

/* Appends the text of the tokens. */
static void decode(const struct smc_tokenizer *t, const uint32_t *tokens, size_t count, int skip_special,
                   struct smc_string *text) {
  const uint32_t decoder = t->header->decoder;
  const size_t start = text->length;
  struct smc_string run = {0}; /* bytes that wait to be characters */
  int first = 1;
  for (size_t i = 0; i < count; i++) {
    if (tokens[i] >= t->token_count) continue;
    const uint8_t flags = t->token_flags[tokens[i]];
    if (!(flags & SMC_TOKEN_EXISTS) || (skip_special && flags & SMC_TOKEN_SKIPPED)) continue;
    const uint8_t *const bytes = t->bytes + t->token_starts[tokens[i]];
    const size_t length = t->token_starts[tokens[i] + 1] - t->token_starts[tokens[i]];
    if (decoder & SMC_DECODE_BYTE_LEVEL) {
      smc_string_append(&run, bytes, length, 1);
    } else if (decoder & SMC_DECODE_BYTE_FALLBACK && flags & SMC_TOKEN_BYTE && length == 6) {
      const uint8_t byte = (uint8_t)(hexadecimal(bytes[3]) << 4 | hexadecimal(bytes[4]));
      smc_string_append(&run, &byte, 1, 1);
    } else {
      append_run(text, &run);
      append_token(t, text, bytes, length, first);
    }
    first = 0;
  }
  if (decoder & SMC_DECODE_BYTE_LEVEL) smc_string_append_lossy(text, run.bytes, run.length, 1);
  else append_run(text, &run);
  size_t spaces = 0;
  while (spaces < t->header->strip && start + spaces < text->length && text->bytes[start + spaces] == ' ') spaces++;
  if (spaces) memmove(text->bytes + start, text->bytes + start + spaces, text->length - start - spaces);
  text->length -= spaces;
  text->failed |= run.failed;
  smc_string_free(&run);
}

int64_t smc_tokenizer_decode(const struct smc_tokenizer *tokenizer, const int32_t *tokens, size_t count,
                             int skip_special, char **text, char *error) {
  struct smc_string string = {0};
  decode(tokenizer, (const uint32_t *)tokens, count, skip_special, &string);
  smc_string_append(&string, (const uint8_t *)"", 1, 1);
  free(string.authors);
  *text = (char *)string.bytes;
  if (!string.failed) return (int64_t)string.length - 1;
  free(string.bytes);
  *text = NULL;
  return smc_fail(error, SMC_NO_MEMORY, "no memory for the text of %zu tokens", count);
}

/* ---- one by one */

enum {
  CONTEXT_TOKENS =
      6, /* of the prompt: decoded together with the first new ones, so that spaces at the seam are right */
  PENDING_TOKENS = 64, /* broken bytes are held back no longer: the time of a token must not grow with the text */
  LAST_BYTES = 3,      /* so many U+FFFD at the end may be the first bytes of a character to come */
};

/* As smc/runtime/streaming.py: decoders join tokens by context, so a token's text is what it adds to the others'. */
struct smc_detokenizer {
  const struct smc_tokenizer *tokenizer;
  struct smc_numbers context; /* tokens whose text is out, then … */
  size_t settled;             /* … from here on pending ones, whose text is out in part or not at all */
  struct smc_string context_text;
  size_t emitted; /* characters of the pending text that are out */
  struct smc_string joined, piece;
};

int smc_detokenizer_open(struct smc_detokenizer **detokenizer, const struct smc_tokenizer *tokenizer,
                         const int32_t *prompt, size_t count, char *error) {
  struct smc_detokenizer *const d = *detokenizer = calloc(1, sizeof *d);
  if (!d) return smc_fail(error, SMC_NO_MEMORY, "no memory to decode tokens");
  d->tokenizer = tokenizer;
  for (size_t i = count > CONTEXT_TOKENS ? count - CONTEXT_TOKENS : 0; i < count; i++)
    smc_numbers_push(&d->context, (uint32_t)prompt[i]);
  d->settled = d->context.count;
  decode(tokenizer, d->context.values, d->settled, 1, &d->context_text);
  if (!d->context.failed && !d->context_text.failed) return SMC_OK;
  smc_detokenizer_close(d);
  *detokenizer = NULL;
  return smc_fail(error, SMC_NO_MEMORY, "no memory to decode tokens");
}

void smc_detokenizer_close(struct smc_detokenizer *d) {
  if (!d) return;
  free(d->context.values);
  smc_string_free(&d->context_text);
  smc_string_free(&d->joined);
  smc_string_free(&d->piece);
  free(d);
}

/* The text of the pending tokens as it continues the context: in `joined`, from the result on. */
static size_t pending_text(struct smc_detokenizer *d) {
  const size_t context = d->context_text.length;
  smc_string_clear(&d->joined);
  decode(d->tokenizer, d->context.values, d->context.count, 1, &d->joined);
  if (d->joined.length >= context && (context == 0 || !memcmp(d->joined.bytes, d->context_text.bytes, context)))
    return context;
  /* The context ended in bytes that decode differently with what follows. */
  smc_string_clear(&d->joined);
  decode(d->tokenizer, d->context.values + d->settled, d->context.count - d->settled, 1, &d->joined);
  return 0;
}

/* Where the character that comes after `count` others begins, or the end. */
static size_t after_characters(const struct smc_string *text, size_t at, size_t count) {
  for (; count > 0 && at < text->length; count--) at += smc_utf8_length(text->bytes[at]);
  return at;
}

static int give(struct smc_detokenizer *d, size_t start, size_t end, const char **text, size_t *length) {
  smc_string_clear(&d->piece);
  if (start < end) smc_string_copy(&d->piece, &d->joined, start, end);
  smc_string_append(&d->piece, (const uint8_t *)"", 1, 1);
  *text = "";
  *length = 0;
  if (d->context.failed || d->context_text.failed || d->joined.failed || d->piece.failed) return SMC_NO_MEMORY;
  *text = (const char *)d->piece.bytes;
  *length = d->piece.length - 1;
  return SMC_OK;
}

/* Everything is out: the pending tokens are the new context. */
static void settle(struct smc_detokenizer *d) {
  d->context.count -= d->settled;
  if (d->context.count)
    memmove(d->context.values, d->context.values + d->settled, d->context.count * sizeof *d->context.values);
  d->settled = d->context.count;
  smc_string_clear(&d->context_text);
  decode(d->tokenizer, d->context.values, d->settled, 1, &d->context_text);
  d->emitted = 0;
}

int smc_detokenizer_push(struct smc_detokenizer *d, int32_t token, const char **text, size_t *length) {
  smc_numbers_push(&d->context, (uint32_t)token);
  const size_t start = pending_text(d), stop = d->joined.length;
  size_t end = stop;
  int held = 0;
  if (d->context.count - d->settled <= PENDING_TOKENS)
    for (; held < LAST_BYTES && end >= start + sizeof REPLACEMENT &&
           !memcmp(d->joined.bytes + end - sizeof REPLACEMENT, REPLACEMENT, sizeof REPLACEMENT);
         held++)
      end -= sizeof REPLACEMENT;
  const size_t from = after_characters(&d->joined, start, d->emitted);
  const int status = give(d, from, end, text, length);
  size_t characters = 0;
  for (size_t at = start; at < end; at += smc_utf8_length(d->joined.bytes[at])) characters++;
  if (d->emitted < characters) d->emitted = characters;
  if (end == stop && stop > start) settle(d);
  return status;
}

int smc_detokenizer_flush(struct smc_detokenizer *d, const char **text, size_t *length) {
  const size_t start = pending_text(d);
  const int status = give(d, after_characters(&d->joined, start, d->emitted), d->joined.length, text, length);
  d->context.count = d->settled;
  d->emitted = 0;
  return status;
}
