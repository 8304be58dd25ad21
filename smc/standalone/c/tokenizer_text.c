/* Growing texts and lists of the tokenizer; UTF-8. */
#include "tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

static const uint8_t REPLACEMENT[3] = {0xef, 0xbf, 0xbd}; /* U+FFFD */

void smc_string_free(struct smc_string *string) {
  free(string->bytes);
  free(string->authors);
  *string = (struct smc_string){0};
}

void smc_string_clear(struct smc_string *string) { string->length = 0; }

/* Room for `length` more bytes: 1, or 0 and failed. Places are 32-bit numbers elsewhere, so that is the limit. */
static int reserve(struct smc_string *string, size_t length) {
  if (length <= string->capacity - string->length) return 1;
  size_t capacity = string->capacity * 2;
  if (capacity < string->length + length) capacity = string->length + length;
  if (capacity < 256) capacity = 256;
  if (string->failed || length > UINT32_MAX || string->length + length > UINT32_MAX) {
    string->failed = 1;
    return 0;
  }
  uint8_t *const bytes = realloc(string->bytes, capacity);
  if (bytes) string->bytes = bytes;
  uint8_t *const authors = bytes ? realloc(string->authors, capacity) : NULL;
  if (authors) string->authors = authors;
  if (!authors) string->failed = 1;
  if (authors) string->capacity = capacity;
  return authors != NULL;
}

void smc_string_append(struct smc_string *string, const uint8_t *bytes, size_t length, uint8_t author) {
  if (length == 0 || !reserve(string, length)) return;
  memcpy(string->bytes + string->length, bytes, length);
  memset(string->authors + string->length, author, length);
  string->length += length;
}

void smc_string_copy(struct smc_string *string, const struct smc_string *from, size_t start, size_t end) {
  if (start >= end || !reserve(string, end - start)) return;
  memcpy(string->bytes + string->length, from->bytes + start, end - start);
  memcpy(string->authors + string->length, from->authors + start, end - start);
  string->length += end - start;
}

void smc_string_append_character(struct smc_string *string, uint32_t character, uint8_t author) {
  uint8_t bytes[4];
  size_t length = 1;
  if (character < 0x80) {
    bytes[0] = (uint8_t)character;
  } else {
    length = character < 0x800 ? 2 : character < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i > 0; i--, character >>= 6) bytes[i] = (uint8_t)(0x80 | (character & 63));
    bytes[0] = (uint8_t)(0xf00 >> length | character);
  }
  smc_string_append(string, bytes, length, author);
}

/* Table 3-7 of the Unicode standard: what may follow a lead byte; later bytes are 80..bf. */
size_t smc_utf8_check(const uint8_t *bytes, size_t length, int *valid) {
  const uint8_t lead = bytes[0];
  *valid = lead < 0x80;
  if (lead < 0xc2 || lead > 0xf4) return 1;
  const size_t wanted = smc_utf8_length(lead);
  const uint8_t lowest = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const uint8_t highest = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  size_t found = 1;
  while (found < wanted && found < length && bytes[found] >= (found == 1 ? lowest : 0x80) &&
         bytes[found] <= (found == 1 ? highest : 0xbf))
    found++;
  *valid = found == wanted;
  return found;
}

void smc_string_append_lossy(struct smc_string *string, const uint8_t *bytes, size_t length, uint8_t author) {
  size_t start = 0, at = 0; /* bytes[start..at) are valid and yet to be copied */
  while (at < length) {
    int valid;
    const size_t step = smc_utf8_check(bytes + at, length - at, &valid);
    if (!valid) {
      smc_string_append(string, bytes + start, at - start, author);
      smc_string_append(string, REPLACEMENT, sizeof REPLACEMENT, author);
      start = at + step;
    }
    at += step;
  }
  smc_string_append(string, bytes + start, at - start, author);
}

int smc_numbers_reserve(struct smc_numbers *numbers, size_t count) {
  if (count <= numbers->capacity - numbers->count) return 1;
  size_t capacity = numbers->capacity * 2;
  if (capacity < numbers->count + count) capacity = numbers->count + count;
  if (capacity < 64) capacity = 64;
  uint32_t *const values = numbers->failed ? NULL : realloc(numbers->values, capacity * sizeof *values);
  if (!values) numbers->failed = 1;
  if (!values) return 0;
  numbers->values = values;
  numbers->capacity = capacity;
  return 1;
}

size_t smc_find_text(const uint8_t *bytes, size_t at, size_t end, const uint8_t *text, size_t length) {
  while (length <= end - at) {
    const uint8_t *const found = memchr(bytes + at, text[0], end - at - length + 1);
    if (!found) break;
    at = (size_t)(found - bytes);
    if (!memcmp(found, text, length)) return at;
    at++;
  }
  return end;
}

void smc_replace_text(const struct smc_string *source, struct smc_string *target, const uint8_t *from,
                      size_t from_length, const uint8_t *to, size_t to_length) {
  smc_string_clear(target);
  target->failed |= source->failed;
  for (size_t at = 0; at < source->length;) {
    const size_t place = smc_find_text(source->bytes, at, source->length, from, from_length);
    smc_string_copy(target, source, at, place);
    if (place == source->length) break;
    uint8_t author = SMC_BY_TEMPLATE | SMC_BY_MODEL;
    for (size_t i = 0; i < from_length; i++) author &= source->authors[place + i];
    smc_string_append(target, to, to_length, author);
    at = place + from_length;
  }
}
