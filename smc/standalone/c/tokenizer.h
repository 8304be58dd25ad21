/* Text to tokens and back, token for token as the `tokenizers` library does it with the model's tokenizer.json.
 *
 * smc makes tables of that file when it compiles (smc/standalone/tokenizer_tables.py); they are used in place, wherever
 * they are mapped. A tokenizer never changes once it is open: threads may share it. Functions return SMC_OK, a count or
 * an id, or a negative smc_status with the sentence that explains it in error[SMC_ERROR_BYTES].
 */
#ifndef SMC_TOKENIZER_H
#define SMC_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

struct smc_tokenizer;
struct smc_detokenizer;

/* Who wrote a text. The text of a control token (smc/runtime/control_tokens.py) is such a token where the template, or
 * somebody at the command line, wrote it. What a user wrote has none; an answer has those few that the template looks
 * for in answers. A mask. */
enum smc_author { SMC_BY_USER = 0, SMC_BY_TEMPLATE = 1, SMC_BY_MODEL = 2 };

/* A part of a prompt, not terminated; it need not be valid UTF-8: what is not becomes U+FFFD, as in Python's
 * bytes.decode(errors="replace"). */
struct smc_text {
  const char *bytes;
  size_t length;
  enum smc_author author;
};

/* Checks the tables, which are not trusted. They must begin at a multiple of 8 bytes and stay until close. */
int smc_tokenizer_open(struct smc_tokenizer **tokenizer, const void *tables, size_t size, char *error);
void smc_tokenizer_close(struct smc_tokenizer *tokenizer);

/* The tokens of the texts read as one: *tokens is the caller's to free (NULL on failure), the result is how many.
 * add_special: with what the tokenizer puts around a text, such as a BOS token (not for chats: templates write their
 * own). SMC_BAD_INPUT where ordinary text can only be written with a control token. */
int64_t smc_tokenizer_encode(const struct smc_tokenizer *tokenizer, const struct smc_text *texts, size_t count,
                             int add_special, int32_t **tokens, char *error);

/* The id of the added or special token with this text, or -1. */
int32_t smc_tokenizer_find(const struct smc_tokenizer *tokenizer, const char *text, size_t length);

/* The text of all tokens at once, without special ones where they are to be skipped. *text is the caller's to free,
 * ends with a 0 that does not count and is valid UTF-8; the result is its length in bytes. Ids that are no token are no
 * text. */
int64_t smc_tokenizer_decode(const struct smc_tokenizer *tokenizer, const int32_t *tokens, size_t count,
                             int skip_special, char **text, char *error);

/* Decoding token by token while a model writes: whole characters only, special tokens are no text. The last tokens of
 * the prompt (count may be 0) decide whether the first new one begins with a space. The prompt is copied. */
int smc_detokenizer_open(struct smc_detokenizer **detokenizer, const struct smc_tokenizer *tokenizer,
                         const int32_t *prompt, size_t count, char *error);
void smc_detokenizer_close(struct smc_detokenizer *detokenizer);

/* The text that a token settles, maybe none. *text is valid until the next call. SMC_OK or SMC_NO_MEMORY. */
int smc_detokenizer_push(struct smc_detokenizer *detokenizer, int32_t token, const char **text, size_t *length);

/* At the end: what was held back, bytes that never became a character as U+FFFD. */
int smc_detokenizer_flush(struct smc_detokenizer *detokenizer, const char **text, size_t *length);

#endif
