/* A failure as a status and a sentence. */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>

int smc_fail(char *error, int status, const char *format, ...) {
  if (!error) return status;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error, SMC_ERROR_BYTES, format, arguments);
  va_end(arguments);
  for (char *c = error; *c; c++)
    if ((unsigned char)*c < ' ' || *c == 127) *c = '?'; /* names come from files */
  return status;
}

int smc_artifact_damaged(char *error) {
  return smc_fail(error, SMC_BAD_INPUT,
                  "the artifact's weights are damaged: their checksum is wrong; copy or compile it again");
}
