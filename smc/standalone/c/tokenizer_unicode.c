/* Classes of characters, and normalization form C (Unicode Standard Annex #15), from generated tables. */
#include "tokenizer_internal.h"
#include "tokenizer_unicode.h"

#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* The last of the rising values[0..count) that is not above `value`; values[0] is not. */
static size_t last_not_above(const uint32_t *values, size_t count, uint32_t value) {
  size_t low = 0, high = count;
  while (high - low > 1) {
    const size_t middle = low + (high - low) / 2;
    if (values[middle] <= value) low = middle;
    else high = middle;
  }
  return low;
}

uint32_t smc_character_classes(uint32_t character) {
  if (character < SMC_LOW) return smc_low_classes[character];
  const uint32_t key = character << SMC_CLASS_BITS | ((1u << SMC_CLASS_BITS) - 1);
  return smc_high_classes[last_not_above(smc_high_classes, COUNT(smc_high_classes), key)] &
         ((1u << SMC_CLASS_BITS) - 1);
}

/* ---- normalization form C */

enum { L_BASE = 0x1100, V_BASE = 0x1161, T_BASE = 0x11a7, S_BASE = 0xac00, L_COUNT = 19, V_COUNT = 21, T_COUNT = 28 };

/* A decomposed character; `order` is the rank of its combining class, 0 for a starter. */
struct part {
  uint32_t character;
  uint8_t order, author;
};

struct parts {
  struct part *values;
  size_t count, capacity;
  int failed;
};

static uint8_t order_of(uint32_t character) {
  if (character < SMC_FIRST_MARK) return 0;
  return (uint8_t)smc_orders[last_not_above(smc_orders, COUNT(smc_orders), character << 8 | 255)];
}

static void push(struct parts *parts, uint32_t character, uint8_t author) {
  if (parts->count == parts->capacity) {
    const size_t capacity = parts->capacity ? parts->capacity * 2 : 256;
    struct part *const values = parts->failed ? NULL : realloc(parts->values, capacity * sizeof *values);
    if (!values) parts->failed = 1;
    if (!values) return;
    parts->values = values;
    parts->capacity = capacity;
  }
  parts->values[parts->count++] = (struct part){character, order_of(character), author};
}

static void decompose(struct parts *parts, uint32_t character, uint8_t author) {
  const uint32_t syllable = character - S_BASE; /* wraps around below */
  if (syllable < L_COUNT * V_COUNT * T_COUNT) {
    push(parts, L_BASE + syllable / (V_COUNT * T_COUNT), author);
    push(parts, V_BASE + syllable / T_COUNT % V_COUNT, author);
    if (syllable % T_COUNT) push(parts, T_BASE + syllable % T_COUNT, author);
    return;
  }
  if (character >= smc_decomposed[0]) {
    const size_t place = last_not_above(smc_decomposed, COUNT(smc_decomposed), character);
    if (smc_decomposed[place] == character) {
      for (size_t i = smc_part_starts[place]; i < smc_part_starts[place + 1]; i++) push(parts, smc_parts[i], author);
      return;
    }
  }
  push(parts, character, author);
}

/* Puts runs of marks into the order of their classes; equal ones stay as they are. */
static void sort_marks(struct parts *parts) {
  struct parts sorted = {0};
  for (size_t start = 0, end; start < parts->count; start = end) {
    int in_order = 1;
    for (end = start + 1; end < parts->count && parts->values[end].order; end++)
      in_order &= parts->values[end].order >= parts->values[end - 1].order;
    if (in_order) continue;
    sorted.count = 0;
    for (uint32_t order = 0; order <= SMC_ORDERS; order++) /* a counting sort: runs may be as long as the text */
      for (size_t i = start; i < end; i++)
        if (parts->values[i].order == order) push(&sorted, parts->values[i].character, parts->values[i].author);
    if (sorted.count == end - start)
      memcpy(parts->values + start, sorted.values, (end - start) * sizeof *sorted.values);
  }
  parts->failed |= sorted.failed;
  free(sorted.values);
}

/* What two characters compose to, or 0. */
static uint32_t composed(uint32_t first, uint32_t second) {
  if (first - L_BASE < L_COUNT && second - V_BASE < V_COUNT)
    return S_BASE + ((first - L_BASE) * V_COUNT + (second - V_BASE)) * T_COUNT;
  if (first - S_BASE < L_COUNT * V_COUNT * T_COUNT && (first - S_BASE) % T_COUNT == 0 &&
      second - T_BASE - 1 < T_COUNT - 1)
    return first + (second - T_BASE);
  size_t low = 0, high = COUNT(smc_pairs) / 3;
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    const uint32_t *const pair = smc_pairs + middle * 3;
    if (pair[0] == first && pair[1] == second) return pair[2];
    if (pair[0] < first || (pair[0] == first && pair[1] < second)) low = middle + 1;
    else high = middle;
  }
  return 0;
}

/* Every character joins the last starter before it, unless one between them is a starter or of no lower class. */
static void recompose(struct parts *parts) {
  struct part *const values = parts->values;
  size_t kept = 0, starter = SIZE_MAX;
  for (size_t i = 0; i < parts->count; i++) {
    const struct part part = values[i];
    if (starter != SIZE_MAX && (kept == starter + 1 || values[kept - 1].order < part.order)) {
      const uint32_t whole = composed(values[starter].character, part.character);
      if (whole) {
        values[starter].character = whole;
        values[starter].author &= part.author;
        continue;
      }
    }
    if (part.order == 0) starter = kept;
    values[kept++] = part;
  }
  parts->count = kept;
}

void smc_compose(const struct smc_string *source, struct smc_string *target) {
  smc_string_clear(target);
  target->failed |= source->failed;
  /* All that is below U+0300 is composed, and stays so unless a mark follows. */
  size_t plain = 0;
  while (plain < source->length && source->bytes[plain] < 0xcc) plain++;
  if (plain == source->length) {
    smc_string_copy(target, source, 0, plain);
    return;
  }
  struct parts parts = {0};
  for (size_t at = 0; at < source->length; at += smc_utf8_length(source->bytes[at]))
    decompose(&parts, smc_utf8_character(source->bytes + at), source->authors[at]);
  sort_marks(&parts);
  recompose(&parts);
  for (size_t i = 0; i < parts.count; i++)
    smc_string_append_character(target, parts.values[i].character, parts.values[i].author);
  target->failed |= parts.failed;
  free(parts.values);
}
