/* How the executable ends where the user or the machine did something wrong. */
#include "standalone.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void smc_die(const char *format, ...) {
  va_list values;
  va_start(values, format);
  const char *no_color = getenv("NO_COLOR"); /* no-color.org */
  fputs(isatty(STDERR_FILENO) && !(no_color && *no_color) ? "\033[31merror:\033[0m " : "error: ", stderr);
  vfprintf(stderr, format, values);
  fputc('\n', stderr);
  va_end(values);
  exit(SMC_EXIT_INPUT);
}

void smc_die_of_memory(void) { smc_die("there is not enough memory for this"); }
