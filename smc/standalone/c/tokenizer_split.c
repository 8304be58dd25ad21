/* The pre-tokenizer: a text is cut into the pieces that are merged each on its own.
 *
 * The patterns are regular expressions in tokenizer.json; here each family is a scanner, written as the expression is
 * to be read: alternatives in order, every repetition as long as it can be. */
#include "tokenizer_internal.h"
#include "tokenizer_unicode.h"

#include <stdlib.h>
#include <string.h>

/* ---- what scanners look at: bytes[at..end) is valid UTF-8 */

struct scanner {
  const uint8_t *bytes;
  size_t end;
  const struct smc_text_step *step;
  const uint8_t *text; /* the step's `first` */
};

/* Classes of the character at `at` and, in *next, where the next one is; 0 at the end. */
static uint32_t classes_at(const struct scanner *s, size_t at, size_t *next) {
  *next = at;
  if (at >= s->end) return 0;
  *next = at + smc_utf8_length(s->bytes[at]);
  return smc_character_classes(smc_utf8_character(s->bytes + at));
}

static int is_byte(const struct scanner *s, size_t at, uint8_t byte) { return at < s->end && s->bytes[at] == byte; }
static int is_line_break(const struct scanner *s, size_t at) { return is_byte(s, at, '\n') || is_byte(s, at, '\r'); }

/* Where a run of characters of (any of) the classes ends, at most `most` of them (0: any number). */
static size_t skip(const struct scanner *s, size_t at, uint32_t classes, uint32_t most) {
  size_t next;
  for (uint32_t count = 0; (most == 0 || count < most) && classes_at(s, at, &next) & classes; count++) at = next;
  return at;
}

/* Where a run of characters of none of the classes ends. */
static size_t skip_others(const struct scanner *s, size_t at, uint32_t classes) {
  size_t next;
  while (at < s->end && !(classes_at(s, at, &next) & classes)) at = next;
  return at;
}

/* ---- parts that the families share; all return where the match ends, or `at` where there is none */

/* 's|'t|'re|'ve|'m|'ll|'d, in any case where `any_case`: then "ſ" is an "s" too. */
static size_t skip_contraction(const struct scanner *s, size_t at, int any_case) {
  if (!is_byte(s, at, '\'')) return at;
  uint8_t letters[2] = {0, 0};
  for (size_t i = 0; i < 2 && at + 1 + i < s->end; i++) {
    letters[i] = s->bytes[at + 1 + i];
    if (any_case && letters[i] >= 'A' && letters[i] <= 'Z') letters[i] += 'a' - 'A';
  }
  if (letters[0] && strchr("stmd", letters[0])) return at + 2;
  if ((letters[1] == 'e' && (letters[0] == 'r' || letters[0] == 'v')) || (letters[0] == 'l' && letters[1] == 'l'))
    return at + 3;
  return any_case && letters[0] == 0xc5 && letters[1] == 0xbf ? at + 3 : at;
}

/* \s+(?!\S)|\s+ : white space but for its last character, which belongs to what follows, if anything does. */
static size_t skip_space(const struct scanner *s, size_t at) {
  size_t last = at, next;
  size_t place = at;
  while (classes_at(s, place, &next) & SMC_SPACE) {
    last = place;
    place = next;
  }
  return place == s->end || last == at ? place : last;
}

/* \s*[\r\n]+ : white space up to its last line break. */
static size_t skip_lines(const struct scanner *s, size_t at) {
  size_t end = at, next;
  for (size_t place = at; classes_at(s, place, &next) & SMC_SPACE; place = next)
    if (is_line_break(s, place)) end = next;
  return end;
}

/* ␣?[^\s\p{L}\p{N}]+[\r\n]* ; `words` are the classes that are not to be matched. */
static size_t skip_punctuation(const struct scanner *s, size_t at, uint32_t words, int line_breaks, int slashes) {
  const size_t start = at + (size_t)is_byte(s, at, ' ');
  size_t end = skip_others(s, start, words | SMC_SPACE);
  if (end == start) return at;
  while (line_breaks && (is_line_break(s, end) || (slashes && is_byte(s, end, '/')))) end++;
  return end;
}

/* ---- the families: where the match at `at` ends; they match everywhere */

static size_t scan_gpt2(const struct scanner *s, size_t at) {
  size_t end = skip_contraction(s, at, 0);
  if (end > at) return end;
  const size_t start = at + (size_t)is_byte(s, at, ' ');
  if ((end = skip(s, start, SMC_LETTER, 0)) > start) return end;
  if ((end = skip(s, start, SMC_NUMBER, 0)) > start) return end;
  if ((end = skip_punctuation(s, at, SMC_LETTER | SMC_NUMBER, 0, 0)) > at) return end;
  return skip_space(s, at);
}

/* The end of cl100k and o200k: \p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t scan_rest(const struct scanner *s, size_t at, uint32_t letters) {
  size_t end = skip(s, at, SMC_NUMBER, s->step->most);
  if (end > at) return end;
  end = skip_punctuation(s, at, letters | SMC_NUMBER, 1, (s->step->number & SMC_WORDS_SLASHES) != 0);
  if (end > at) return end;
  if ((end = skip_lines(s, at)) > at) return end;
  return skip_space(s, at);
}

/* [^\r\n\p{L}\p{N}]? : where a word may begin besides `at`, or `at`. */
static size_t skip_word_prefix(const struct scanner *s, size_t at) {
  size_t next;
  return classes_at(s, at, &next) & (SMC_LETTER | SMC_NUMBER) || is_line_break(s, at) ? at : next;
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|… */
static size_t scan_cl100k(const struct scanner *s, size_t at) {
  const uint32_t letters = s->step->number & SMC_WORDS_WITH_MARKS ? SMC_UPPER | SMC_LOWER : SMC_LETTER;
  size_t end = skip_contraction(s, at, 1);
  if (end > at) return end;
  const size_t prefix = skip_word_prefix(s, at);
  if ((end = skip(s, prefix, letters, 0)) > prefix) return end;
  if ((end = skip(s, at, letters, 0)) > at) return end;
  return scan_rest(s, at, letters);
}

/* U*W+ where U and W, upper and lower case, share letters without case and marks: U* gives back what W+ needs. */
static size_t skip_lower_word(const struct scanner *s, size_t at) {
  size_t next, back = at;
  size_t place = at;
  for (uint32_t classes; (classes = classes_at(s, place, &next)) & SMC_UPPER; place = next)
    if (classes & SMC_LOWER) back = next;
  const size_t end = skip(s, place, SMC_LOWER, 0);
  return end > place ? end : back;
}

/* U+W* */
static size_t skip_upper_word(const struct scanner *s, size_t at) {
  const size_t end = skip(s, at, SMC_UPPER, 0);
  return end > at ? skip(s, end, SMC_LOWER, 0) : at;
}

/* [^\r\n\p{L}\p{N}]?U*W+(?i:'s|…)?|[^\r\n\p{L}\p{N}]?U+W*(?i:'s|…)?|… */
static size_t scan_o200k(const struct scanner *s, size_t at) {
  const size_t prefix = skip_word_prefix(s, at);
  size_t end = skip_lower_word(s, prefix);
  if (end == prefix) end = skip_lower_word(s, at);
  if (end == at && (end = skip_upper_word(s, prefix)) == prefix) end = skip_upper_word(s, at);
  if (end == at) return scan_rest(s, at, SMC_LETTER);
  return s->step->number & SMC_WORDS_CONTRACTIONS ? skip_contraction(s, end, 1) : end;
}

/* \n|F*[^F\n]+|F+ */
static size_t scan_lines(const struct scanner *s, size_t at) {
  if (is_byte(s, at, '\n')) return at + 1;
  const size_t length = s->step->first.length;
  while (s->end - at >= length && !memcmp(s->bytes + at, s->text, length)) at += length;
  while (at < s->end && s->bytes[at] != '\n' && (s->end - at < length || memcmp(s->bytes + at, s->text, length))) at++;
  return at;
}

/* ---- cutting: the pieces that a piece becomes */

static void cut_words(const struct scanner *s, size_t at, size_t (*scan)(const struct scanner *, size_t),
                      struct smc_numbers *ends) {
  while (at < s->end) {
    const size_t end = scan(s, at);
    at = end > at ? end
                  : at + smc_utf8_length(s->bytes[at]); /* the patterns match everywhere, so this is only caution */
    smc_numbers_push(ends, (uint32_t)at);
  }
}

/* Every match, and whatever lies between matches. */
static void cut_class(const struct scanner *s, size_t start, struct smc_numbers *ends) {
  for (size_t at = start; at < s->end;) {
    const size_t end = skip(s, at, s->step->number, s->step->most);
    uint32_t count = 0;
    for (size_t i = at; i < end; i += smc_utf8_length(s->bytes[i])) count++;
    if (count == 0 || count < s->step->least) {
      at += smc_utf8_length(s->bytes[at]);
      continue;
    }
    if (at > start) smc_numbers_push(ends, (uint32_t)at);
    smc_numbers_push(ends, (uint32_t)end);
    at = start = end;
  }
  if (start < s->end) smc_numbers_push(ends, (uint32_t)s->end);
}

static void cut_text(const struct scanner *s, size_t start, struct smc_numbers *ends) {
  const size_t length = s->step->first.length;
  for (size_t at = start; at < s->end;) {
    const size_t match = smc_find_text(s->bytes, at, s->end, s->text, length);
    if (match == s->end) break;
    const size_t stop = match + length;
    switch (s->step->number) {
      case SMC_CUT_ISOLATED:
        if (match > at) smc_numbers_push(ends, (uint32_t)match);
        smc_numbers_push(ends, (uint32_t)stop);
        break;
      case SMC_CUT_WITH_PREVIOUS: smc_numbers_push(ends, (uint32_t)stop); break;
      case SMC_CUT_WITH_NEXT:
        if (match > start) smc_numbers_push(ends, (uint32_t)match);
        break;
      default: /* SMC_CUT_RUNS */
        if (match > at) smc_numbers_push(ends, (uint32_t)match);
        else if (at > start) ends->count--; /* it goes on where the last match ended */
        smc_numbers_push(ends, (uint32_t)stop);
    }
    at = stop;
  }
  if (!ends->count || ends->values[ends->count - 1] < s->end) smc_numbers_push(ends, (uint32_t)s->end);
}

static void cut(struct scanner *s, size_t start, struct smc_numbers *ends) {
  switch (s->step->kind) {
    case SMC_STEP_SPLIT_TEXT: cut_text(s, start, ends); break;
    case SMC_STEP_SPLIT_CLASS: cut_class(s, start, ends); break;
    case SMC_STEP_SPLIT_LINES: cut_words(s, start, scan_lines, ends); break;
    case SMC_STEP_SPLIT_GPT2: cut_words(s, start, scan_gpt2, ends); break;
    case SMC_STEP_SPLIT_CL100K: cut_words(s, start, scan_cl100k, ends); break;
    default: cut_words(s, start, scan_o200k, ends);
  }
}

/* ---- steps that change the text: a piece is appended to `target` */

static int begins_with(const struct smc_string *text, size_t start, size_t end, const uint8_t *with, size_t length) {
  return length <= end - start && !memcmp(text->bytes + start, with, length);
}

static void change(const struct smc_tokenizer *tokenizer, const struct smc_text_step *step,
                   const struct smc_string *text, size_t start, size_t end, int first, struct smc_string *target) {
  const uint8_t *const replacement = tokenizer->bytes + step->first.offset;
  const size_t length = step->first.length;
  if (step->kind == SMC_STEP_PREPEND_SPACE) {
    if (text->bytes[start] != ' ') smc_string_append(target, (const uint8_t *)" ", 1, text->authors[start]);
    smc_string_copy(target, text, start, end);
    return;
  }
  const int prepend = step->number == SMC_PREPEND_ALWAYS || (step->number == SMC_PREPEND_FIRST && first);
  if (prepend && text->bytes[start] != ' ' && !begins_with(text, start, end, replacement, length))
    smc_string_append(target, replacement, length, text->authors[start]);
  for (size_t at = start; at < end;) {
    const uint8_t *const space = memchr(text->bytes + at, ' ', end - at);
    const size_t place = space ? (size_t)(space - text->bytes) : end;
    smc_string_copy(target, text, at, place);
    if (space) smc_string_append(target, replacement, length, text->authors[place]);
    at = place + (space != NULL);
  }
}

/* ---- all steps */

void smc_split(const struct smc_tokenizer *tokenizer, struct smc_pieces *pieces, int first) {
  pieces->ends.count = 0;
  if (pieces->text.length) smc_numbers_push(&pieces->ends, (uint32_t)pieces->text.length);
  for (uint32_t i = 0; i < tokenizer->header->splitter.count; i++) {
    const struct smc_text_step *const step = tokenizer->splitter + i;
    const int changes = step->kind < SMC_STEP_SPLIT_TEXT;
    struct scanner scanner = {pieces->text.bytes, 0, step, tokenizer->bytes + step->first.offset};
    pieces->spare_ends.count = 0;
    smc_string_clear(&pieces->spare);
    for (size_t piece = 0, start = 0; piece < pieces->ends.count; start = pieces->ends.values[piece++]) {
      const size_t end = scanner.end = pieces->ends.values[piece];
      if (changes) {
        change(tokenizer, step, &pieces->text, start, end, first && piece == 0, &pieces->spare);
        smc_numbers_push(&pieces->spare_ends, (uint32_t)pieces->spare.length);
      } else {
        cut(&scanner, start, &pieces->spare_ends);
      }
    }
    const struct smc_numbers ends = pieces->ends;
    pieces->ends = pieces->spare_ends;
    pieces->spare_ends = ends;
    if (changes) {
      const struct smc_string text = pieces->text;
      pieces->text = pieces->spare;
      pieces->spare = text;
    }
    if (pieces->ends.failed || pieces->spare_ends.failed || pieces->text.failed || pieces->spare.failed) return;
  }
}

void smc_pieces_free(struct smc_pieces *pieces) {
  smc_string_free(&pieces->text);
  smc_string_free(&pieces->spare);
  free(pieces->ends.values);
  free(pieces->spare_ends.values);
  *pieces = (struct smc_pieces){0};
}
