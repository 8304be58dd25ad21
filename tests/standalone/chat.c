/* Damages pieces at random and renders with whatever still opens: chat PIECES ROUNDS. Built with sanitizers, it shows
 * reads out of bounds. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chat_template.h"

static uint64_t state = 1;

static uint64_t random_below(uint64_t bound) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (state >> 33) % bound;
}

static void render(const struct smc_chat_template *template) {
  static const char *const contents[] = {"",         " \n", "hello\n", "a</think>\xe2\x80", "\xc2\x85 x \xe3\x80\x80",
                                         "x\xff\xc2"};
  struct smc_message messages[8];
  char error[SMC_ERROR_BYTES];
  for (size_t count = 0; count <= 8; count++) {
    for (int system = 0; system < 2; system++) {
      for (size_t i = 0; i < count; i++) {
        const char *content = contents[random_below(6)];
        const size_t turn = i - (size_t)system;
        messages[i] = (struct smc_message){turn % 2 ? SMC_ROLE_ASSISTANT : SMC_ROLE_USER, content, strlen(content)};
      }
      if (system && count) messages[0].role = SMC_ROLE_SYSTEM;
      struct smc_text *texts;
      const int64_t made = smc_chat_template_render(template, messages, count, &texts, error);
      volatile unsigned sum = 0;
      for (int64_t i = 0; i < made; i++)
        for (size_t j = 0; j < texts[i].length; j++) sum += (unsigned char)texts[i].bytes[j];
      if ((made < 0) != (texts == NULL) || (made < 0 && !*error)) abort();
      free(texts);
    }
  }
}

int main(int count, char **arguments) {
  if (count != 3) return 2;
  FILE *file = fopen(arguments[1], "rb");
  if (!file) return 2;
  static char whole[1 << 16];
  const size_t size = fread(whole, 1, sizeof whole, file);
  fclose(file);
  long opened = 0;
  for (long round = 0, rounds = atol(arguments[2]); round < rounds; round++) {
    const size_t bytes = random_below(4) ? size : random_below(size + 1);
    char *member = malloc(bytes + 1), error[SMC_ERROR_BYTES] = ""; /* + 1: a size of 0 is one, too */
    memcpy(member, whole, bytes);
    for (uint64_t flips = random_below(4); bytes && flips > 0; flips--) {
      /* Half of them in what comes before the text, where there is more to break. */
      const size_t at = random_below(random_below(2) ? bytes : (bytes + 1) / 2);
      member[at] = (char)(random_below(2) ? random_below(256) : (uint64_t)(member[at] ^ 1 << random_below(8)));
    }
    char *exact = malloc(bytes ? bytes : 1);
    memcpy(exact, member, bytes);
    free(member);
    struct smc_chat_template *template;
    const int status = smc_chat_template_open(&template, exact, bytes, error);
    if ((status == SMC_OK) != (template != NULL) || (status && !*error)) abort();
    if (!status) {
      opened++;
      render(template);
    }
    smc_chat_template_close(template);
    free(exact);
  }
  printf("%ld\n", opened);
  return 0;
}
