/* The tokenizer's tables as smc/standalone/tokenizer_tables.py writes them, and what the tokenizer's files know of each
 * other.
 *
 * Tables are one block of little-endian numbers: a header, then sections whose places the header names. Nothing in them
 * is believed before smc_tokenizer_open has looked at it.
 */
#ifndef SMC_TOKENIZER_INTERNAL_H
#define SMC_TOKENIZER_INTERNAL_H

#include "internal.h"
#include "tokenizer.h"

#define SMC_TOKENIZER_MAGIC 0x6b6f7473u /* "stok" */
#define SMC_TOKENIZER_VERSION 1u

/* count elements that begin `offset` bytes from the start of the tables. */
struct smc_section {
  uint32_t offset, count;
};

/* A text in the section `bytes`; always valid UTF-8, but for texts of tokens. */
struct smc_span {
  uint32_t offset, length;
};

/* How tokens become text. A mask: nearly all combinations occur. */
enum {
  SMC_DECODE_BYTE_LEVEL = 1,    /* texts of tokens are bytes; else they are UTF-8 */
  SMC_DECODE_REPLACE = 2,       /* decode_from, not empty, becomes decode_to in every token */
  SMC_DECODE_DROP_FIRST = 4,    /* in the first token decode_from vanishes instead (Metaspace) */
  SMC_DECODE_BYTE_FALLBACK = 8, /* tokens <0xNN> are bytes; those that make no character are U+FFFD each */
};

enum {
  SMC_MODEL_BYTE_LEVEL = 1,    /* symbols are bytes, not characters */
  SMC_MODEL_BYTE_FALLBACK = 2, /* characters without a token are written as <0xNN> … */
  SMC_MODEL_FUSE_UNKNOWN = 4,  /* … and where there is no such token, neighbours are one unknown token */
  SMC_MODEL_IGNORE_MERGES = 8, /* a piece that is a token is that token */
};

/* Of a token id. */
enum {
  SMC_TOKEN_EXISTS = 1,
  SMC_TOKEN_CONTROL = 2, /* not made of what users write */
  SMC_TOKEN_BYTE = 4,    /* decodes as the byte of its text, <0xNN> */
  SMC_TOKEN_SKIPPED = 8, /* left out where special tokens are: not if its text is that of a normalized added token */
  SMC_TOKEN_IN_ANSWERS = 16, /* a control token that answers may have */
};

enum {
  SMC_ADDED_NORMALIZED = 1, /* looked for in the normalized text */
  SMC_ADDED_LSTRIP = 2,     /* takes the white space before it along */
  SMC_ADDED_RSTRIP = 4,
  SMC_ADDED_SINGLE_WORD = 8, /* not within a word */
};

/* A token that is found in the text before anything else is done. */
struct smc_added {
  struct smc_span content, pattern; /* what it is called and what is looked for: they differ where it is normalized */
  int32_t id;
  uint32_t flags;
  uint32_t prefix; /* so many bytes of the pattern are the normalizer's, the rest is the token's own text */
};

enum {
  /* Steps of the normalizer. */
  SMC_STEP_NFC = 1,
  SMC_STEP_REPLACE = 2, /* every `first` becomes `second` */
  SMC_STEP_PREPEND = 3, /* `first` comes before the text */
  /* Steps of the pre-tokenizer: they change the pieces … */
  SMC_STEP_PREPEND_SPACE = 16, /* to begin with a space, each */
  SMC_STEP_METASPACE = 17,     /* `first` for every space and, by `number`, before the piece */
  /* … or cut them further. */
  SMC_STEP_SPLIT_TEXT = 32,   /* at `first`, by `number`: an smc_cut */
  SMC_STEP_SPLIT_CLASS = 33,  /* at runs of the classes `number`, of `least` to `most` characters (0: any) */
  SMC_STEP_SPLIT_LINES = 34,  /* \n|F*[^F\n]+|F+ for the character F = `first` */
  SMC_STEP_SPLIT_GPT2 = 35,   /* Radford et al. 2019 */
  SMC_STEP_SPLIT_CL100K = 36, /* GPT-4's and Llama 3's family: numbers of up to `most` digits, words by `number` */
  SMC_STEP_SPLIT_O200K = 37,  /* GPT-4o's family: the same, words are cut at upper case */
};

enum { SMC_PREPEND_ALWAYS = 1, SMC_PREPEND_FIRST = 2 }; /* SMC_STEP_METASPACE; 0: never */
enum smc_cut { SMC_CUT_ISOLATED, SMC_CUT_WITH_PREVIOUS, SMC_CUT_WITH_NEXT, SMC_CUT_RUNS };
enum {                           /* SMC_STEP_SPLIT_CL100K and _O200K */
       SMC_WORDS_WITH_MARKS = 1, /* combining marks are letters */
       SMC_WORDS_CONTRACTIONS = 2,
       SMC_WORDS_SLASHES = 4, /* slashes belong to the punctuation that a line ends with, as line breaks do */
};

#define SMC_STEP_BYTES 64 /* texts of steps are no longer: a text must not grow without bounds */

struct smc_text_step {
  uint32_t kind, number, least, most;
  struct smc_span first, second;
};

struct smc_tokenizer_header {
  uint32_t magic, version, size;
  uint32_t model, decoder;                /* masks, see above */
  int32_t unknown;                        /* the token for what has none, or -1: then it is left out */
  uint32_t hash_bits, word_bits;          /* 2^bits buckets */
  uint32_t strip;                         /* so many spaces are dropped from the start of a text */
  struct smc_span decode_from, decode_to; /* for SMC_DECODE_REPLACE */
  struct smc_span word_start;             /* no merge joins this character to another one before it; or empty */
  struct smc_section bytes;               /* uint8_t: all texts */
  struct smc_section token_starts; /* uint32_t [tokens + 1]: token t's text is bytes[starts[t] .. starts[t + 1]) */
  struct smc_section token_flags;  /* uint8_t [tokens] */
  struct smc_section symbols;      /* struct smc_symbol, in the order of the characters: what merging begins with */
  struct smc_section byte_tokens;  /* int32_t [256] for SMC_MODEL_BYTE_FALLBACK, or none; -1: has no token */
  struct smc_section buckets;      /* uint32_t [2^hash_bits + 1]: where the bucket of a pair begins in `merges` */
  struct smc_section merges;       /* uint64_t: left << 44 | right << 24 | rank */
  struct smc_section merged;       /* int32_t by rank: what the pair becomes */
  struct smc_section word_buckets, words; /* for SMC_MODEL_IGNORE_MERGES: the same for ids of tokens, by their text */
  struct smc_section added; /* struct smc_added: those on the text as it is, then the normalized; by pattern */
  struct smc_section normalizer, splitter; /* struct smc_text_step */
  struct smc_section prefix, suffix;       /* int32_t: tokens around every text */
};

struct smc_symbol {
  uint32_t character; /* code point or byte */
  int32_t token;
};

struct smc_tokenizer {
  const struct smc_tokenizer_header *header;
  const uint8_t *bytes, *token_flags;
  const uint32_t *token_starts, *buckets, *word_buckets;
  const uint64_t *merges;
  const struct smc_symbol *symbols;
  const int32_t *byte_tokens, *merged, *words, *prefix, *suffix;
  const struct smc_added *added;
  const struct smc_text_step *normalizer, *splitter;
  uint32_t token_count;
  uint32_t added_first[2][257]; /* [normalized]: the added tokens whose pattern begins with a byte */
  int32_t low_symbols[256];     /* the token of a byte or a low code point, -1 for none */
};

/* ---- tokenizer_text.c: growing texts */

/* Valid UTF-8 and, for every byte, the smc_author: of a byte that two wrote, what both may. What fails for want of
 * memory sets `failed` and changes nothing; so only the end of a chain of calls needs a look. */
struct smc_string {
  uint8_t *bytes, *authors;
  size_t length, capacity;
  int failed;
};

void smc_string_free(struct smc_string *string);
void smc_string_clear(struct smc_string *string);
void smc_string_append(struct smc_string *string, const uint8_t *bytes, size_t length, uint8_t author);
void smc_string_copy(struct smc_string *string, const struct smc_string *from, size_t start, size_t end);
void smc_string_append_character(struct smc_string *string, uint32_t character, uint8_t author);
/* Appends any bytes; what is no UTF-8 becomes U+FFFD, one for each longest beginning of a character. */
void smc_string_append_lossy(struct smc_string *string, const uint8_t *bytes, size_t length, uint8_t author);

/* Whose text may become the token: a mask of smc_author, all of it for tokens that are no control tokens. */
static inline int smc_token_authors(uint8_t token_flags) {
  if (!(token_flags & SMC_TOKEN_CONTROL)) return -1;
  return token_flags & SMC_TOKEN_IN_ANSWERS ? SMC_BY_TEMPLATE | SMC_BY_MODEL : SMC_BY_TEMPLATE;
}

/* Length of the character at bytes[0]; and the character itself. `bytes` is valid UTF-8. */
static inline size_t smc_utf8_length(uint8_t lead) { return lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4; }
static inline uint32_t smc_utf8_character(const uint8_t *bytes) {
  const uint32_t lead = bytes[0];
  if (lead < 0x80) return lead;
  if (lead < 0xe0) return (lead & 31) << 6 | (bytes[1] & 63u);
  if (lead < 0xf0) return (lead & 15) << 12 | (bytes[1] & 63u) << 6 | (bytes[2] & 63u);
  return (lead & 7) << 18 | (bytes[1] & 63u) << 12 | (bytes[2] & 63u) << 6 | (bytes[3] & 63u);
}
/* How many of the bytes at the start are a character or the longest beginning of one; *valid is which. length > 0. */
size_t smc_utf8_check(const uint8_t *bytes, size_t length, int *valid);

/* A growing list of numbers, with `failed` as above. */
struct smc_numbers {
  uint32_t *values;
  size_t count, capacity;
  int failed;
};

int smc_numbers_reserve(struct smc_numbers *numbers, size_t count); /* room for so many more: 1, or 0 and failed */
static inline void smc_numbers_push(struct smc_numbers *numbers, uint32_t value) {
  if (numbers->count < numbers->capacity || smc_numbers_reserve(numbers, 1)) numbers->values[numbers->count++] = value;
}

/* The place of `text` in bytes[at..end), or end. */
size_t smc_find_text(const uint8_t *bytes, size_t at, size_t end, const uint8_t *text, size_t length);
/* Replaces every `from`, not empty, by `to`: source → target, which is emptied first. */
void smc_replace_text(const struct smc_string *source, struct smc_string *target, const uint8_t *from,
                      size_t from_length, const uint8_t *to, size_t to_length);

/* ---- tokenizer_unicode.c */

uint32_t smc_character_classes(uint32_t character); /* a mask of the classes in tokenizer_unicode.h */
/* Unicode normalization form C: source → target, which is emptied first. */
void smc_compose(const struct smc_string *source, struct smc_string *target);

/* ---- tokenizer_split.c: the pre-tokenizer */

/* Cuts the text, which it may change, into pieces: *ends are where they end. first: whether the text begins where the
 * prompt does. spare, spare_ends: room to work in; both pairs may be exchanged. */
struct smc_pieces {
  struct smc_string text, spare;
  struct smc_numbers ends, spare_ends;
};
void smc_split(const struct smc_tokenizer *tokenizer, struct smc_pieces *pieces, int first);
void smc_pieces_free(struct smc_pieces *pieces);

/* ---- tokenizer_merge.c: byte pair encoding */

struct smc_merger; /* room to work in */
struct smc_merger *smc_merger_open(void);
void smc_merger_close(struct smc_merger *merger);
/* Appends the tokens of the piece text[start..end). */
int smc_merge(const struct smc_tokenizer *tokenizer, struct smc_merger *merger, const struct smc_string *text,
              size_t start, size_t end, struct smc_numbers *tokens, char *error);

#endif
