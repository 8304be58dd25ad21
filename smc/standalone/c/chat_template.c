/* A conversation to the texts of a prompt, from the pieces of a chat template. What the pieces mean is said, and done
 * in Python, in smc/standalone/chat_pieces.py; here is the same with bytes for characters. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "chat_template.h"

enum kind { KIND_TEXT, KIND_CONTENT, KIND_DATE, KIND_REFUSAL, KIND_GUARD, KINDS };
enum strip { STRIP_NOTHING, STRIP_NEWLINES, STRIP_WHITESPACE, STRIPS };
enum group { GROUP_USER, GROUP_ASSISTANT, GROUP_END, GROUPS };
enum { FIRST = 1, LAST = 2, PLACES = 4 };
enum empty_system { SYSTEM_MESSAGE, SYSTEM_NONE_IF_EMPTY, SYSTEM_NONE_IF_BLANK, EMPTY_SYSTEMS };
enum { DATE_BYTES = 256, MAX_FORMAT_BYTES = 63 };

/* As they are in the member, which is little-endian as every machine that smc knows. */
struct piece {
  uint32_t kind, offset, length, flags;
};
struct range {
  uint32_t first, count;
};
struct header {
  char magic[8];
  uint32_t pieces, text_bytes, empty_system, reserved;
  struct range lists[2][GROUPS][PLACES]; /* with a system message or without, whose, where */
};

struct smc_chat_template {
  struct header header;
  struct piece *pieces;
  const char *text;
};

static int of_system(const struct piece *piece) { return piece->flags & 1; }
static enum strip strip_left(const struct piece *piece) { return piece->flags >> 1 & 3; }
static enum strip strip_right(const struct piece *piece) { return piece->flags >> 3 & 3; }
static enum strip strip_after_cut(const struct piece *piece) { return piece->flags >> 5 & 3; }

/* ---- opening */

static int piece_valid(const struct piece *piece, const char *text, uint32_t text_bytes) {
  if (piece->kind >= KINDS || piece->flags >> 7 || piece->offset > text_bytes ||
      piece->length > text_bytes - piece->offset)
    return 0;
  if (strip_left(piece) >= STRIPS || strip_right(piece) >= STRIPS || strip_after_cut(piece) >= STRIPS) return 0;
  if (piece->kind == KIND_REFUSAL && !piece->length) return 0;
  return piece->kind != KIND_DATE ||
         (piece->length <= MAX_FORMAT_BYTES && !memchr(text + piece->offset, 0, piece->length));
}

static int valid(const struct smc_chat_template *template) {
  const struct header *header = &template->header;
  if (header->empty_system >= EMPTY_SYSTEMS) return 0;
  for (uint32_t i = 0; i < header->pieces; i++)
    if (!piece_valid(&template->pieces[i], template->text, header->text_bytes)) return 0;
  const struct range *lists = &header->lists[0][0][0];
  for (size_t i = 0; i < sizeof header->lists / sizeof *lists; i++)
    if (lists[i].first > header->pieces || lists[i].count > header->pieces - lists[i].first) return 0;
  return 1;
}

int smc_chat_template_open(struct smc_chat_template **opened, const void *member, size_t size, char *error) {
  static const char damaged[] = "its chat template is damaged";
  *opened = NULL;
  struct header header;
  if (size < sizeof header) return smc_fail(error, SMC_BAD_INPUT, "%s", damaged);
  memcpy(&header, member, sizeof header);
  const uint64_t piece_bytes = (uint64_t)header.pieces * sizeof(struct piece);
  if (memcmp(header.magic, "smcchat1", sizeof header.magic) || size != sizeof header + piece_bytes + header.text_bytes)
    return smc_fail(error, SMC_BAD_INPUT, "%s", damaged);
  struct smc_chat_template *template = malloc(sizeof *template);
  struct piece *pieces = malloc(piece_bytes + 1); /* a copy, so that the member may lie at any address */
  if (!template || !pieces) {
    free(template);
    free(pieces);
    return smc_fail(error, SMC_NO_MEMORY, "there is no memory for the chat template");
  }
  memcpy(pieces, (const char *)member + sizeof header, piece_bytes);
  *template = (struct smc_chat_template){header, pieces, (const char *)member + sizeof header + piece_bytes};
  if (!valid(template)) {
    smc_chat_template_close(template);
    return smc_fail(error, SMC_BAD_INPUT, "%s", damaged);
  }
  *opened = template;
  return SMC_OK;
}

void smc_chat_template_close(struct smc_chat_template *template) {
  if (template) free(template->pieces);
  free(template);
}

/* ---- contents */

struct span {
  const char *bytes;
  size_t length;
};

/* White space as Python's str.isspace() has it; every entry is a whole UTF-8 sequence, so an end of a text that equals
 * one is that character, also in a text with broken sequences. */
static const char whitespace[][4] = {"\t",           "\n",           "\v",           "\f",           "\r",
                                     "\x1c",         "\x1d",         "\x1e",         "\x1f",         " ",
                                     "\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\x80", "\xe2\x80\x81",
                                     "\xe2\x80\x82", "\xe2\x80\x83", "\xe2\x80\x84", "\xe2\x80\x85", "\xe2\x80\x86",
                                     "\xe2\x80\x87", "\xe2\x80\x88", "\xe2\x80\x89", "\xe2\x80\x8a", "\xe2\x80\xa8",
                                     "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};

/* The bytes of the character to be stripped at an end of the text, or 0. */
static size_t strippable(struct span text, int right, enum strip strip) {
  if (strip == STRIP_NOTHING) return 0;
  if (strip == STRIP_NEWLINES) return text.length && text.bytes[right ? text.length - 1 : 0] == '\n';
  for (size_t i = 0; i < sizeof whitespace / sizeof *whitespace; i++) {
    const size_t length = strlen(whitespace[i]);
    if (length <= text.length && !memcmp(right ? text.bytes + text.length - length : text.bytes, whitespace[i], length))
      return length;
  }
  return 0;
}

static struct span stripped(struct span text, enum strip left, enum strip right) {
  for (size_t bytes; (bytes = strippable(text, 0, left)) != 0;)
    text = (struct span){text.bytes + bytes, text.length - bytes};
  for (size_t bytes; (bytes = strippable(text, 1, right)) != 0;) text.length -= bytes;
  return text;
}

static int blank(struct span text) { return stripped(text, STRIP_WHITESPACE, STRIP_NOTHING).length == 0; }

/* Behind the last occurrence of `part`, or NULL where there is none. */
static const char *after_last(struct span text, struct span part) {
  for (size_t end = text.length; part.length && end >= part.length; end--)
    if (!memcmp(text.bytes + end - part.length, part.bytes, part.length)) return text.bytes + end;
  return NULL;
}

static struct span written(struct span content, const struct piece *piece, struct span cut) {
  const char *rest = after_last(content, cut);
  if (rest) {
    const struct span behind = {rest, content.length - (size_t)(rest - content.bytes)};
    content = stripped(behind, strip_after_cut(piece), STRIP_NOTHING);
  }
  return stripped(content, strip_left(piece), strip_right(piece));
}

/* ---- rendering */

/* What is being written; dates lie behind the texts in the same block. */
struct output {
  struct smc_text *texts;
  size_t count;
  char *dates;
};

static int write_piece(struct output *output, const struct smc_chat_template *template, const struct piece *piece,
                       struct span content, enum smc_author author, char *error) {
  const struct span text = {template->text + piece->offset, piece->length};
  const int shown = text.length > 300 ? 300 : (int)text.length;
  struct smc_text *next = &output->texts[output->count];
  switch ((enum kind)piece->kind) {
    case KIND_TEXT: *next = (struct smc_text){text.bytes, text.length, SMC_BY_TEMPLATE}; break;
    case KIND_CONTENT:
      content = written(content, piece, text);
      *next = (struct smc_text){content.bytes, content.length, author};
      break;
    case KIND_DATE: {
      char format[MAX_FORMAT_BYTES + 1] = "";
      memcpy(format, text.bytes, text.length);
      const time_t seconds = time(NULL);
      struct tm now;
      if (!localtime_r(&seconds, &now))
        return smc_fail(error, SMC_FAILED, "this machine's clock has no date, which the chat template writes");
      *next = (struct smc_text){output->dates, strftime(output->dates, DATE_BYTES, format, &now), SMC_BY_USER};
      output->dates += DATE_BYTES;
      break;
    }
    case KIND_REFUSAL: return smc_fail(error, SMC_BAD_INPUT, "%.*s", shown, text.bytes);
    case KIND_GUARD:
      if (!text.length && blank(content))
        return smc_fail(error, SMC_BAD_INPUT,
                        "the model's chat template allows no empty message here: write something");
      if (after_last(content, text))
        return smc_fail(error, SMC_BAD_INPUT,
                        "the model's chat template treats '%.*s' in a message specially: remove it", shown, text.bytes);
      return SMC_OK;
    case KINDS: break;
  }
  output->count++;
  return SMC_OK;
}

/* At most one system message, at the beginning, then users and assistants alternating, a user last. */
static int check_roles(const struct smc_message *messages, size_t count, char *error) {
  const size_t first = count && messages[0].role == SMC_ROLE_SYSTEM;
  int fine = (count - first) % 2 == 1;
  for (size_t i = first; i < count; i++)
    fine &= messages[i].role == ((i - first) % 2 ? SMC_ROLE_ASSISTANT : SMC_ROLE_USER);
  return fine ? SMC_OK
              : smc_fail(error, SMC_BAD_INPUT,
                         "user and assistant must alternate in a conversation, and the user must begin and end it");
}

/* The pieces for turn i of `turns`, or for what follows the last one. */
static const struct range *list_of(const struct smc_chat_template *template, int system, size_t i, size_t turns) {
  const size_t users = (turns + 1) / 2, at = i < turns ? i / 2 : users - 1;
  const enum group group = i == turns ? GROUP_END : i % 2 ? GROUP_ASSISTANT : GROUP_USER;
  const int last = at == users - 1 - (group == GROUP_ASSISTANT);
  return &template->header.lists[system][group][(at == 0 ? FIRST : 0) | (last ? LAST : 0)];
}

int64_t smc_chat_template_render(const struct smc_chat_template *template, const struct smc_message *messages,
                                 size_t count, struct smc_text **texts, char *error) {
  *texts = NULL;
  const int status = check_roles(messages, count, error);
  if (status) return status;
  const size_t first = messages[0].role == SMC_ROLE_SYSTEM, turns = count - first;
  const struct span system_content = {messages[0].content, first ? messages[0].length : 0};
  const enum empty_system empty = template->header.empty_system;
  const int dropped = (empty == SYSTEM_NONE_IF_EMPTY && !system_content.length) ||
                      (empty == SYSTEM_NONE_IF_BLANK && blank(system_content));
  const int system = first && !dropped;

  size_t capacity = 1, dates = 0;
  for (size_t i = 0; i <= turns; i++) {
    const struct range *list = list_of(template, system, i, turns);
    capacity += list->count;
    for (uint32_t j = 0; j < list->count; j++) dates += template->pieces[list->first + j].kind == KIND_DATE;
  }
  struct output output = {.texts = malloc(capacity * sizeof *output.texts + dates * DATE_BYTES)};
  if (!output.texts)
    return smc_fail(error, SMC_NO_MEMORY, "there is no memory for a conversation of %zu messages", count);
  output.dates = (char *)(output.texts + capacity);
  for (size_t i = 0; i <= turns; i++) {
    const struct range *list = list_of(template, system, i, turns);
    const enum smc_author author = i < turns && i % 2 ? SMC_BY_MODEL : SMC_BY_USER;
    const struct span own = {i < turns ? messages[first + i].content : "", i < turns ? messages[first + i].length : 0};
    for (uint32_t j = 0; j < list->count; j++) {
      const struct piece *piece = &template->pieces[list->first + j];
      const int failed = of_system(piece) ? write_piece(&output, template, piece, system_content, SMC_BY_USER, error)
                                          : write_piece(&output, template, piece, own, author, error);
      if (failed) {
        free(output.texts);
        return failed;
      }
    }
  }
  *texts = output.texts;
  return (int64_t)output.count;
}
