/* The standalone executable: reads the command line, opens the model in this very file, and runs the command. */
#include "standalone.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

volatile sig_atomic_t smc_interrupted;
static smc_model *volatile interrupted_model;

static void on_interrupt(int signal) {
  (void)signal;
  smc_interrupted = 1;
  smc_engine.cancel(interrupted_model);
}

/* From now on Ctrl-C ends the running step, or waiting for the user, and not the program. */
static void catch_interrupts(smc_model *model) {
  struct sigaction action = {.sa_handler = on_interrupt}; /* not SA_RESTART: a read ends too */
  sigemptyset(&action.sa_mask);
  interrupted_model = model;
  sigaction(SIGINT, &action, NULL);
}

/* The file is mapped, and on some systems it can be cut short even while it runs; so a missing page is reported as
 * such. */
static void on_missing_page(int signal) {
  static const char sentence[] =
      "error: this program's file can't be read any more: it was changed, or its disk fails\n";
  (void)signal;
  (void)!write(STDERR_FILENO, sentence, sizeof sentence - 1);
  _exit(SMC_EXIT_INPUT);
}

int main(int count, char **arguments) {
  static int (*const modes[])(struct smc_session *, const struct smc_command *) = {[SMC_MODE_RUN] = smc_run,
                                                                                   [SMC_MODE_CHAT] = smc_chat,
                                                                                   [SMC_MODE_BENCH] = smc_bench,
                                                                                   [SMC_MODE_INFO] = smc_print_info};
  signal(SIGBUS, on_missing_page);
  const struct smc_command command = smc_parse_command(count, arguments);
  if (command.mode == SMC_MODE_VERIFY) return smc_verify(&command);
  struct smc_session session;
  smc_session_open(&session, &command);
  if (command.verbose)
    fprintf(stderr, "%s, %d threads, level %s, context %d\n", session.info.name, session.info.threads,
            session.info.level, session.info.context_length);
  if (command.mode != SMC_MODE_INFO) catch_interrupts(session.model);
  const int calls = session.calls && command.mode == SMC_MODE_RUN;
  const int status = (calls ? smc_call : modes[command.mode])(&session, &command);
  interrupted_model = NULL;
  smc_session_close(&session);
  free(command.stops);
  free(command.input);
  return status;
}
