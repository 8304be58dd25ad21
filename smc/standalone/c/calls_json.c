/* Calls as JSON: `<nexa_2>('kitchen', 21)` becomes {"name": …, "arguments": {…}}; JSON in an answer is taken over. */
#include "calls.h"

#include <string.h>

struct reader {
  const struct smc_call_tables *tables;
  const char *at, *end;
  struct smc_buffer *out;
};

static int takes(struct reader *reader, const char *text) {
  const size_t length = strlen(text);
  if ((size_t)(reader->end - reader->at) < length || memcmp(reader->at, text, length)) return 0;
  reader->at += length;
  return 1;
}

static void add_text(struct smc_buffer *out, const char *text) { smc_buffer_add(out, text, strlen(text)); }

static void add_span(const struct reader *reader, struct smc_span span) {
  smc_add_json(reader->out, (const char *)reader->tables->texts + span.offset, span.length);
}

/* ---- calls by function tokens: Python values */

static int add_value(struct reader *reader, int depth);

/* A string in single quotes. */
static int add_string(struct reader *reader) {
  struct smc_buffer text = {0};
  smc_buffer_add(&text, "", 0);
  while (reader->at < reader->end && *reader->at != '\'') {
    const int escaped = *reader->at == '\\' && reader->at + 1 < reader->end;
    reader->at += escaped;
    const char c = escaped && *reader->at == 'n' ? '\n' : *reader->at;
    smc_buffer_add(&text, &c, 1);
    reader->at++;
  }
  smc_add_json(reader->out, text.bytes, text.length);
  smc_buffer_free(&text);
  return takes(reader, "'");
}

static int add_list(struct reader *reader, int depth) {
  add_text(reader->out, "[");
  for (int first = 1; !takes(reader, "]"); first = 0) {
    if (!first && !takes(reader, ", ")) return 0;
    if (!first) add_text(reader->out, ", ");
    if (!add_value(reader, depth)) return 0;
  }
  add_text(reader->out, "]");
  return 1;
}

/* The function whose token comes next, or NULL. */
static const struct smc_called *find_function(struct reader *reader) {
  const struct smc_call_tables *t = reader->tables;
  const struct smc_called *found = NULL;
  for (uint32_t i = 0; i < t->header->sections[SMC_CALL_FUNCTIONS].count; i++) {
    const struct smc_called *f = &t->functions[i];
    if (f->token.length == 0 || f->token.length > (size_t)(reader->end - reader->at)) continue;
    if (memcmp(reader->at, t->texts + f->token.offset, f->token.length)) continue;
    if (!found || f->token.length > found->token.length) found = f;
  }
  if (found) reader->at += found->token.length;
  return found;
}

static int add_call(struct reader *reader, const struct smc_called *function, int depth) {
  add_text(reader->out, "{\"name\": ");
  add_span(reader, function->name);
  add_text(reader->out, ", \"arguments\": {");
  if (!takes(reader, "(")) return 0;
  for (uint32_t i = 0; i < function->count; i++) {
    if (i && !takes(reader, ", ")) return 0;
    if (i) add_text(reader->out, ", ");
    add_span(reader, reader->tables->arguments[function->first + i]);
    add_text(reader->out, ": ");
    if (!add_value(reader, depth)) return 0;
  }
  add_text(reader->out, "}}");
  return takes(reader, ")");
}

/* A number or None, up to what ends a value. */
static int add_word(struct reader *reader) {
  const char *start = reader->at;
  while (reader->at < reader->end && !memchr(",)]", *reader->at, 3)) reader->at++;
  if (reader->at == start) return 0;
  if (reader->at - start == 4 && !memcmp(start, "None", 4)) add_text(reader->out, "null");
  else smc_buffer_add(reader->out, start, (size_t)(reader->at - start));
  return 1;
}

static int add_value(struct reader *reader, int depth) {
  if (depth > SMC_CALL_DEPTH) return 0;
  if (takes(reader, "'")) return add_string(reader);
  if (takes(reader, "[")) return add_list(reader, depth + 1);
  if (takes(reader, "True")) return add_text(reader->out, "true"), 1;
  if (takes(reader, "False")) return add_text(reader->out, "false"), 1;
  const struct smc_called *function = find_function(reader);
  return function ? add_call(reader, function, depth + 1) : add_word(reader);
}

static int add_token_calls(struct reader *reader, const char *separator) {
  for (int first = 1;; first = 0) {
    const struct smc_called *function = find_function(reader);
    if (!function) return 0;
    if (!first) add_text(reader->out, separator);
    if (!add_call(reader, function, 0)) return 0;
    if (!takes(reader, ";")) return 1;
  }
}

/* ---- calls by a chat template: objects of JSON */

/* How many bytes the object at bytes[0..length) has; 0 where it does not end. */
static size_t object_length(const char *bytes, size_t length) {
  int quoted = 0, depth = 0;
  for (size_t i = 0; i < length; i++) {
    if (quoted && bytes[i] == '\\') i++;
    else if (bytes[i] == '"') quoted = !quoted;
    else if (!quoted && bytes[i] == '{') depth++;
    else if (!quoted && bytes[i] == '}' && --depth == 0) return i + 1;
  }
  return 0;
}

static int add_json_calls(struct reader *reader, const char *separator) {
  static const char theirs[] = "\", \"parameters\": ", ours[] = "\", \"arguments\": "; /* Llama 3's, everybody's */
  int count = 0;
  for (const char *start; (start = memchr(reader->at, '{', (size_t)(reader->end - reader->at))); count++) {
    const size_t length = object_length(start, (size_t)(reader->end - start));
    if (length == 0) return 0;
    if (count) add_text(reader->out, separator);
    /* Names have no quotes: the first of these is what follows the name. */
    const char *key = memmem(start, length, theirs, sizeof theirs - 1);
    const char *usual = memmem(start, length, ours, sizeof ours - 1);
    reader->at = start + length;
    if (key && (!usual || key < usual)) {
      smc_buffer_add(reader->out, start, (size_t)(key - start));
      add_text(reader->out, ours);
      start = key + sizeof theirs - 1;
    }
    smc_buffer_add(reader->out, start, (size_t)(reader->at - start));
  }
  return count > 0;
}

int smc_add_calls(struct smc_buffer *out, const struct smc_calls *calls, const char *text, size_t length,
                  const char *separator) {
  struct reader reader = {.tables = smc_calls_tables(calls), .at = text, .end = text + length, .out = out};
  return reader.tables->header->by_tokens ? add_token_calls(&reader, separator) : add_json_calls(&reader, separator);
}
