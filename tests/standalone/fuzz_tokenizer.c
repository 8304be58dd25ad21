/* Changes bytes of a tokenizer's tables at random and uses what still opens: for AddressSanitizer and its like.
 *
 *     fuzz TABLES TEXT ROUNDS          prints in how many rounds the tables opened
 */
#include "../../smc/standalone/c/tokenizer_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state = 1;

static uint64_t next_random(void) { /* xorshift64: Marsaglia 2003 */
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

static uint8_t *read_file(const char *path, size_t *size) {
  FILE *const file = fopen(path, "rb");
  if (!file) exit(2);
  fseek(file, 0, SEEK_END);
  *size = (size_t)ftell(file);
  rewind(file);
  uint8_t *const data = malloc(*size);
  if (!data || fread(data, 1, *size, file) != *size) exit(2);
  fclose(file);
  return data;
}

/* A few bytes of the header or of anything; a changed section is still inside at times. */
static void damage(uint8_t *tables, size_t size) {
  for (uint64_t count = 1 + next_random() % 3; count > 0; count--) {
    const size_t place = next_random() % (next_random() % 2 ? sizeof(struct smc_tokenizer_header) : size);
    if (next_random() % 2) tables[place] = (uint8_t)next_random();
    else tables[place] ^= (uint8_t)(1u << next_random() % 8);
  }
}

static void use(const struct smc_tokenizer *tokenizer, const char *text, size_t length) {
  char error[SMC_ERROR_BYTES];
  int32_t *tokens;
  char *decoded;
  const size_t start = next_random() % length,
               end = start + next_random() % (length - start < 400 ? length - start : 400);
  const struct smc_text texts[] = {{text + start, end - start, 1}, {text, length - end < 50 ? length - end : 50, 0}};
  const int64_t count = smc_tokenizer_encode(tokenizer, texts, 2, 1, &tokens, error);
  if (count < 0) return;
  if (smc_tokenizer_decode(tokenizer, tokens, (size_t)count, 1, &decoded, error) >= 0) free(decoded);
  struct smc_detokenizer *detokenizer;
  if (smc_detokenizer_open(&detokenizer, tokenizer, tokens, (size_t)count, error) == 0) {
    const char *piece;
    size_t piece_length;
    for (int i = 0; i < 20; i++)
      smc_detokenizer_push(detokenizer, (int32_t)(next_random() % 1600), &piece, &piece_length);
    smc_detokenizer_flush(detokenizer, &piece, &piece_length);
    smc_detokenizer_close(detokenizer);
  }
  (void)smc_tokenizer_find(tokenizer, "<s>", 3);
  free(tokens);
}

int main(int count, char **arguments) {
  if (count != 4) return 2;
  size_t size, length;
  uint8_t *const tables = read_file(arguments[1], &size), *const text = read_file(arguments[2], &length);
  const long rounds = strtol(arguments[3], NULL, 10);
  long opened = 0;
  for (long round = 0; round < rounds; round++) {
    uint8_t *const copy = malloc(size); /* exactly as large: what lies behind is out of bounds */
    if (!copy) return 2;
    memcpy(copy, tables, size);
    damage(copy, size);
    size_t given = size;
    if (next_random() % 16 == 0) given = next_random() % size;
    uint8_t *const cut = malloc(given + 1);
    if (!cut) return 2;
    memcpy(cut, copy, given);
    char error[SMC_ERROR_BYTES];
    struct smc_tokenizer *tokenizer;
    if (smc_tokenizer_open(&tokenizer, given == size ? copy : cut, given, error) == 0) {
      opened++;
      use(tokenizer, (const char *)text, length);
      smc_tokenizer_close(tokenizer);
    }
    free(cut);
    free(copy);
  }
  free(tables);
  free(text);
  printf("%ld\n", opened);
  return 0;
}
