/* Which tokens may come next in a call of a function: an automaton of bytes and tokens, whose tables
 * smc/standalone/call_tables.py makes. The whole vocabulary is looked at for a mask, in the order of its bytes: what
 * tokens have in common with the one before them is gone through once. */
#include "calls.h"

#include <stdlib.h>
#include <string.h>

/* Where a text stands: the number of a state in the lowest 16 bits, and in those above it the states to return to. In
 * state 0 no call is under way, so that no place has more than three of them. */
typedef uint64_t place;

enum { STATE_BITS = 16, STATE = 0xffff, LONGEST_TOKEN = 255 };
static const place DONE = UINT64_MAX, FULL = (place)STATE << 3 * STATE_BITS;

struct smc_calls {
  struct smc_call_tables tables;
  int32_t vocab_size;
  place now, *after; /* after: [vocab_size] of the tokens that are allowed */
  uint8_t *allowed;
};

/* ---- opening */

/* Sets the places of all sections; 0 where one does not fit. */
static int find_sections(struct smc_call_tables *t, const uint8_t *data, size_t size) {
  static const size_t widths[SMC_CALL_SECTIONS] = {
      1, 2, 1, sizeof(struct smc_call_edge), 4, 1, 1, 1, sizeof(struct smc_called), sizeof(struct smc_span), 1};
  const void *places[SMC_CALL_SECTIONS];
  for (int i = 0; i < SMC_CALL_SECTIONS; i++) {
    const struct smc_section section = t->header->sections[i];
    if (section.offset % 8 || section.offset > size || section.count > (size - section.offset) / widths[i]) return 0;
    places[i] = data + section.offset;
  }
  t->classes = places[0], t->steps = places[1], t->flags = places[2], t->edges = places[3], t->order = places[4];
  t->common = places[5], t->added = places[6], t->suffixes = places[7], t->functions = places[8];
  t->arguments = places[9], t->texts = places[10];
  return 1;
}

static uint32_t count_of(const struct smc_call_tables *t, enum smc_call_section section) {
  return t->header->sections[section].count;
}

static int is_span(const struct smc_call_tables *t, struct smc_span span) {
  const uint32_t size = count_of(t, SMC_CALL_TEXTS);
  return span.offset <= size && span.length <= size - span.offset;
}

static int is_state(const struct smc_call_tables *t, uint32_t state) { return state < t->header->state_count; }

static int check_automaton(const struct smc_call_tables *t) {
  const struct smc_call_header *h = t->header;
  if (h->state_count < 2 || h->state_count > SMC_CALL_RETURN || count_of(t, SMC_CALL_FLAGS) != h->state_count ||
      count_of(t, SMC_CALL_CLASSES) != 256 || h->class_count == 0 || h->class_count > 256 ||
      count_of(t, SMC_CALL_STEPS) != h->state_count * h->class_count)
    return 0;
  for (int i = 0; i < 256; i++)
    if (t->classes[i] >= h->class_count) return 0;
  for (uint32_t i = 0; i < count_of(t, SMC_CALL_STEPS); i++)
    if (t->steps[i] < SMC_CALL_RETURN && !is_state(t, t->steps[i])) return 0;
  for (uint32_t i = 0; i < count_of(t, SMC_CALL_EDGES); i++) {
    const struct smc_call_edge *edge = &t->edges[i];
    if (!is_state(t, edge->state) || !is_state(t, edge->to)) return 0;
    if (edge->behind != SMC_CALL_NONE && !is_state(t, edge->behind)) return 0;
  }
  return 1;
}

static int check_vocabulary(const struct smc_call_tables *t, int32_t vocab_size) {
  const uint32_t count = count_of(t, SMC_CALL_ORDER);
  uint64_t bytes = 0, length = 0;
  if (count_of(t, SMC_CALL_COMMON) != count || count_of(t, SMC_CALL_ADDED) != count) return 0;
  for (uint32_t i = 0; i < count; i++) {
    if (t->order[i] < 0 || t->order[i] >= vocab_size || t->common[i] > length) return 0;
    length = (uint64_t)t->common[i] + t->added[i];
    bytes += t->added[i];
    if (length > LONGEST_TOKEN) return 0;
  }
  return bytes == count_of(t, SMC_CALL_SUFFIXES);
}

static int check_names(const struct smc_call_tables *t) {
  const uint32_t arguments = count_of(t, SMC_CALL_ARGUMENTS);
  for (uint32_t i = 0; i < count_of(t, SMC_CALL_FUNCTIONS); i++) {
    const struct smc_called *f = &t->functions[i];
    if (!is_span(t, f->name) || !is_span(t, f->token) || f->first > arguments || f->count > arguments - f->first)
      return 0;
  }
  for (uint32_t i = 0; i < arguments; i++)
    if (!is_span(t, t->arguments[i])) return 0;
  return is_span(t, t->header->before) && is_span(t, t->header->after);
}

int smc_calls_open(struct smc_calls **calls, const void *tables, size_t size, int32_t vocab_size, char *error) {
  struct smc_calls *const c = *calls = calloc(1, sizeof *c);
  if (!c) return smc_fail(error, SMC_NO_MEMORY, "no memory for the functions");
  c->tables.header = tables;
  c->vocab_size = vocab_size;
  c->after = malloc((size_t)vocab_size * sizeof *c->after);
  c->allowed = malloc((size_t)vocab_size);
  const struct smc_call_header *h = tables;
  int status = SMC_OK;
  if (!c->after || !c->allowed) status = smc_fail(error, SMC_NO_MEMORY, "no memory for the functions");
  else if (size < sizeof *h || h->magic != SMC_CALL_MAGIC || h->version != SMC_CALL_VERSION || h->size > size ||
           !find_sections(&c->tables, tables, h->size) || !check_automaton(&c->tables) ||
           !check_vocabulary(&c->tables, vocab_size) || !check_names(&c->tables))
    status = smc_fail(error, SMC_BAD_INPUT, "its tables of functions are wrong");
  if (status) smc_calls_close(c), *calls = NULL;
  return status;
}

void smc_calls_close(struct smc_calls *calls) {
  if (!calls) return;
  free(calls->after);
  free(calls->allowed);
  free(calls);
}

/* ---- following a text */

void smc_calls_begin(struct smc_calls *calls) { calls->now = 1; }

/* The place after a byte: 0 where there is none. */
static int step(const struct smc_call_tables *t, place *at, uint8_t byte) {
  const uint16_t next = t->steps[(*at & STATE) * t->header->class_count + t->classes[byte]];
  if (next == SMC_CALL_NONE) return 0;
  *at = next == SMC_CALL_RETURN ? *at >> STATE_BITS : (*at & ~(place)STATE) | next;
  return 1;
}

static void allow(struct smc_calls *calls, int32_t token, place after) {
  if (token < 0 || token >= calls->vocab_size) return;
  calls->allowed[token] = 1;
  calls->after[token] = after;
}

static void allow_text(struct smc_calls *calls) {
  const struct smc_call_tables *t = &calls->tables;
  place places[LONGEST_TOKEN + 1] = {calls->now};
  size_t alive = 0; /* so many bytes of the token before went well: places[0 .. alive] */
  const uint8_t *bytes = t->suffixes;
  for (uint32_t i = 0; i < count_of(t, SMC_CALL_ORDER); bytes += t->added[i], i++) {
    if (t->common[i] > alive) continue;
    const size_t length = (size_t)t->common[i] + t->added[i];
    for (alive = t->common[i]; alive < length; alive++) {
      places[alive + 1] = places[alive];
      if (!step(t, &places[alive + 1], bytes[alive - t->common[i]])) break;
    }
    if (alive == length) allow(calls, t->order[i], places[alive]);
  }
}

static void allow_tokens(struct smc_calls *calls) {
  const struct smc_call_tables *t = &calls->tables;
  const place state = calls->now & STATE;
  for (uint32_t i = 0; i < count_of(t, SMC_CALL_EDGES); i++) {
    const struct smc_call_edge *edge = &t->edges[i];
    if (edge->state != state) continue;
    place after = (calls->now & ~(place)STATE) | edge->to;
    if (edge->behind != SMC_CALL_NONE) {
      if (calls->now & FULL) continue; /* nested too deep */
      after = ((calls->now & ~(place)STATE) | edge->behind) << STATE_BITS | edge->to;
    }
    allow(calls, edge->token, after);
  }
}

const uint8_t *smc_calls_allowed(struct smc_calls *calls) {
  memset(calls->allowed, 0, (size_t)calls->vocab_size);
  allow_text(calls);
  allow_tokens(calls);
  int any = 0;
  for (int32_t i = 0; i < calls->vocab_size && !any; i++) any = calls->allowed[i];
  const int may_end = calls->now <= STATE && calls->tables.flags[calls->now] & SMC_CALL_MAY_END;
  for (int32_t i = 0; i < smc_facts.eos_count && (may_end || !any); i++) allow(calls, smc_facts.eos[i], DONE);
  return calls->allowed;
}

int smc_calls_accept(struct smc_calls *calls, int32_t token) {
  calls->now = calls->after[token];
  return calls->now != DONE && !(calls->now <= STATE && calls->tables.flags[calls->now] & SMC_CALL_MUST_END);
}

void smc_calls_prompt(const struct smc_calls *calls, struct smc_text *texts) {
  const struct smc_call_header *h = calls->tables.header;
  const char *all = (const char *)calls->tables.texts;
  texts[0] = (struct smc_text){.bytes = all + h->before.offset, .length = h->before.length, .author = SMC_BY_TEMPLATE};
  texts[2] = (struct smc_text){.bytes = all + h->after.offset, .length = h->after.length, .author = SMC_BY_TEMPLATE};
}

const struct smc_call_tables *smc_calls_tables(const struct smc_calls *calls) { return &calls->tables; }
