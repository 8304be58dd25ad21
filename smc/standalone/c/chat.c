/* A conversation, line by line, as `smc chat` has it. */
#include "standalone.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <unistd.h>

static const char chat_help[] = "/reset starts again, /exit or Ctrl-D leaves, Ctrl-C stops an answer.";

struct conversation {
  struct smc_message *messages;   /* [capacity]; the contents are the conversation's own, but for the system message */
  int32_t count, capacity, first; /* first: 1 where there is a system message, else 0 */
};

static void add_message(struct conversation *conversation, enum smc_role role, const char *bytes, size_t length) {
  if (conversation->count == conversation->capacity) {
    conversation->capacity = 2 * conversation->capacity + 8;
    conversation->messages =
        realloc(conversation->messages, (size_t)conversation->capacity * sizeof *conversation->messages);
  }
  char *copy = malloc(length + 1);
  if (!conversation->messages || !copy) smc_die_of_memory();
  memcpy(copy, bytes, length);
  conversation->messages[conversation->count++] = (struct smc_message){.role = role, .content = copy, .length = length};
}

/* Removes `count` messages from place `begin` on. */
static void forget(struct conversation *conversation, int32_t begin, int32_t count) {
  struct smc_message *gone = conversation->messages + begin;
  for (int32_t i = 0; i < count; i++) free((void *)(uintptr_t)gone[i].content);
  conversation->count -= count;
  if (count) memmove(gone, gone + count, (size_t)(conversation->count - begin) * sizeof *gone);
}

/* Waits for input; 0 where Ctrl-C came first. SIGINT is blocked but inside of pselect, so that none is missed between
 * the question whether there was one and the waiting. */
static int await_input(void) {
  sigset_t interrupt, before;
  sigemptyset(&interrupt);
  sigaddset(&interrupt, SIGINT);
  sigprocmask(SIG_BLOCK, &interrupt, &before);
  fd_set inputs;
  FD_ZERO(&inputs);
  FD_SET(STDIN_FILENO, &inputs);
  if (!smc_interrupted) pselect(STDIN_FILENO + 1, &inputs, NULL, NULL, NULL, &before);
  const int interrupted = smc_interrupted;
  sigprocmask(SIG_SETMASK, &before, NULL);
  return !interrupted;
}

/* The user's next line without the spaces around it, or NULL at the end of the input. Ctrl-C forgets what was typed. */
static const char *read_line(int terminal, char **line, size_t *capacity, size_t *length) {
  for (;;) {
    if (terminal) smc_print("> ", 2);
    ssize_t count = await_input() ? getline(line, capacity, stdin) : -1;
    if (count < 0 && smc_interrupted) {
      if (!terminal) exit(SMC_EXIT_INTERRUPTED);
      fprintf(stderr, "\n%s\n", chat_help);
      clearerr(stdin);
      smc_interrupted = 0;
      continue;
    }
    if (count < 0) {
      if (terminal) smc_print("\n", 1);
      return NULL;
    }
    char *begin = *line;
    while (count && strchr(" \t\r\n\v\f", begin[count - 1]) && begin[count - 1]) count--;
    while (count && strchr(" \t\r\n\v\f", *begin) && *begin) begin++, count--;
    begin[count] = 0;
    smc_check_utf8("standard input", begin, (size_t)count);
    *length = (size_t)count;
    return begin;
  }
}

/* The conversation as tokens; where it leaves no room for an answer, its oldest exchanges are removed for good. */
static int32_t fitting_prompt(const struct smc_session *session, struct conversation *conversation, int quiet,
                              int32_t **prompt) {
  int32_t forgotten = 0, count;
  for (;;) {
    count = smc_encode_chat(session, conversation->messages, conversation->count, prompt);
    if (count < session->info.context_length || conversation->count - conversation->first <= 1) break;
    forget(conversation, conversation->first, 2); /* a question and its answer */
    forgotten += 2;
    free(*prompt);
  }
  if (forgotten && !quiet) fprintf(stderr, "(the context is full: the %d oldest messages are forgotten)\n", forgotten);
  return count;
}

/* Prints the model's answer while it comes and adds it to the conversation, whole or as far as Ctrl-C let it come. */
static void answer(struct smc_session *session, const struct smc_command *command, struct conversation *conversation) {
  struct smc_generation generation;
  int32_t *prompt;
  const int32_t count = fitting_prompt(session, conversation, command->quiet, &prompt);
  smc_generate(session, command, prompt, count, SMC_OUTPUT_TEXT, &generation);
  if (generation.finish == SMC_FINISH_INTERRUPTED) smc_print(" …", strlen(" …"));
  smc_print("\n", 1);
  if (!command->quiet && generation.finish == SMC_FINISH_LENGTH && session->length >= session->info.context_length)
    fputs("(the context is full: /reset starts again)\n", stderr);
  add_message(conversation, SMC_ROLE_ASSISTANT, generation.text.bytes, generation.text.length);
  smc_generation_free(&generation);
  free(prompt);
}

int smc_chat(struct smc_session *session, const struct smc_command *command) {
  struct conversation conversation = {0};
  const int terminal = isatty(STDIN_FILENO);
  char *buffer = NULL;
  size_t capacity = 0, length;
  if (command->system) {
    add_message(&conversation, SMC_ROLE_SYSTEM, command->system, strlen(command->system));
    conversation.first = 1;
  }
  setvbuf(stdin, NULL, _IONBF, 0); /* what a buffer holds, await_input would not see */
  if (terminal && !command->quiet)
    fprintf(stderr, "%s, %d threads, context %d. %s\n", session->info.name, session->info.threads,
            session->info.context_length, chat_help);
  for (const char *line; (line = read_line(terminal, &buffer, &capacity, &length)) && strcmp(line, "/exit");) {
    if (!strcmp(line, "/reset")) {
      forget(&conversation, conversation.first, conversation.count - conversation.first);
    } else if (length && session->calls) {
      smc_answer_with_calls(session, command, line, length);
    } else if (length) {
      add_message(&conversation, SMC_ROLE_USER, line, length);
      answer(session, command, &conversation);
    }
    if (smc_interrupted && !terminal) exit(SMC_EXIT_INTERRUPTED);
    smc_interrupted = 0;
  }
  forget(&conversation, 0, conversation.count);
  free(conversation.messages);
  free(buffer);
  return 0;
}
