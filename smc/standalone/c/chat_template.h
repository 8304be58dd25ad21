/* A conversation to the texts of a prompt, without jinja: the chat template was taken apart when the model was compiled
 * (smc/standalone/chat_pieces.py) and is put together again here.
 */
#ifndef SMC_CHAT_TEMPLATE_H
#define SMC_CHAT_TEMPLATE_H

#include <stddef.h>

#include "tokenizer.h"

enum smc_role { SMC_ROLE_SYSTEM, SMC_ROLE_USER, SMC_ROLE_ASSISTANT };

/* One message of a conversation; its content is not terminated and need not be valid UTF-8. */
struct smc_message {
  enum smc_role role;
  const char *content;
  size_t length;
};

struct smc_chat_template;

/* Checks the member, which is not trusted; it must stay until close. SMC_OK, or a negative smc_status and the sentence
 * in error[SMC_ERROR_BYTES]. */
int smc_chat_template_open(struct smc_chat_template **template, const void *member, size_t size, char *error);
void smc_chat_template_close(struct smc_chat_template *template);

/* The prompt after which the assistant is to answer: at most one system message, at the beginning, then the user and
 * the assistant alternating, the user first and last. *texts is the caller's to free (NULL on failure) and refers to
 * the member and the contents; the result is how many there are. Each says who its author is. To be encoded without
 * add_special. SMC_BAD_INPUT where the template refuses the conversation. */
int64_t smc_chat_template_render(const struct smc_chat_template *template, const struct smc_message *messages,
                                 size_t count, struct smc_text **texts, char *error);

#endif
