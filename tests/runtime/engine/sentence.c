/* What the tokenizer needs of engine.c, for a library or program of the tokenizer alone. */
#include "../../../smc/runtime/engine/internal.h"

#include <stdarg.h>
#include <stdio.h>

int smc_fail(char *error, int status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error, SMC_ERROR_BYTES, format, arguments);
  va_end(arguments);
  return status;
}
