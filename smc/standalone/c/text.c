/* Bytes that grow, and the program's input and output. */
#include "standalone.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void reserve(struct smc_buffer *buffer, size_t more) {
  if (more < buffer->capacity - buffer->length) return; /* one byte is for the 0 at the end */
  const size_t capacity = 2 * buffer->capacity + more + 64;
  char *bytes = capacity > more ? realloc(buffer->bytes, capacity) : NULL;
  if (!bytes) smc_die_of_memory();
  buffer->bytes = bytes, buffer->capacity = capacity;
}

void smc_buffer_add(struct smc_buffer *buffer, const char *bytes, size_t length) {
  reserve(buffer, length);
  if (length) memcpy(buffer->bytes + buffer->length, bytes, length);
  buffer->bytes[buffer->length += length] = 0;
}

void smc_buffer_free(struct smc_buffer *buffer) {
  free(buffer->bytes);
  *buffer = (struct smc_buffer){0};
}

void smc_add_format(struct smc_buffer *buffer, const char *format, ...) {
  char text[512];
  va_list values;
  va_start(values, format);
  const int length = vsnprintf(text, sizeof text, format, values);
  va_end(values);
  smc_buffer_add(buffer, text, length < (int)sizeof text ? (size_t)length : sizeof text - 1);
}

void smc_add_json(struct smc_buffer *buffer, const char *bytes, size_t length) {
  static const char escaped[] = "\b\f\n\r\t\"\\", letters[] = "bfnrt\"\\";
  smc_buffer_add(buffer, "\"", 1);
  for (size_t i = 0; i < length; i++) {
    const unsigned char c = (unsigned char)bytes[i];
    const char *found = c ? strchr(escaped, c) : NULL;
    if (found) smc_add_format(buffer, "\\%c", letters[found - escaped]);
    else if (c < ' ') smc_add_format(buffer, "\\u%04x", c);
    else smc_buffer_add(buffer, bytes + i, 1);
  }
  smc_buffer_add(buffer, "\"", 1);
}

void smc_add_json_text(struct smc_buffer *buffer, const char *text) { smc_add_json(buffer, text, strlen(text)); }

/* How many bytes the well-formed UTF-8 sequence at bytes[0..length) has, or 0 (table 3-7 of the Unicode standard). */
static size_t sequence_bytes(const unsigned char *bytes, size_t length) {
  const unsigned char lead = bytes[0];
  if (lead < 0x80) return 1;
  const size_t count = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || length < count) return 0;
  const unsigned char least = lead == 0xe0   ? 0xa0
                              : lead == 0xf0 ? 0x90
                                             : 0x80,
                      most = lead == 0xed   ? 0x9f
                             : lead == 0xf4 ? 0x8f
                                            : 0xbf;
  if (bytes[1] < least || bytes[1] > most) return 0;
  for (size_t i = 2; i < count; i++)
    if (bytes[i] >> 6 != 2) return 0;
  return count;
}

void smc_check_utf8(const char *what, const char *bytes, size_t length) {
  for (size_t at = 0, count; at < length; at += count) {
    count = sequence_bytes((const unsigned char *)bytes + at, length - at);
    if (count == 0) smc_die("%s is not UTF-8 text: its byte %zu can't be there", what, at + 1);
  }
}

void smc_read_input(struct smc_buffer *buffer, int can_be_none, int quiet) {
  enum { PATIENCE_MS = 2000 };
  struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
  *buffer = (struct smc_buffer){0};
  if (poll(&input, 1, PATIENCE_MS) == 0 && !quiet)
    fputs("(waiting for text on standard input; where there is none, end the command with </dev/null)\n", stderr);
  for (;;) {
    reserve(buffer, 1 << 16);
    const ssize_t got = read(STDIN_FILENO, buffer->bytes + buffer->length, 1 << 16);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EBADF && can_be_none) break;
    if (got < 0) smc_die("the prompt can't be read from standard input: %s", strerror(errno));
    if (got == 0) break;
    buffer->length += (size_t)got;
  }
  if (buffer->length && buffer->bytes[buffer->length - 1] == '\n') buffer->length--;
  buffer->bytes[buffer->length] = 0;
}

void smc_print(const char *bytes, size_t length) {
  while (length) {
    const ssize_t written = write(STDOUT_FILENO, bytes, length);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) smc_die("can't write to standard output: %s", strerror(errno));
    bytes += written, length -= (size_t)written;
  }
}
