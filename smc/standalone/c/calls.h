/* The tables of functions as smc/standalone/call_tables.py writes them: a header and sections of little-endian numbers.
 * Nothing in them is believed before smc_calls_open has looked at it. */
#ifndef SMC_CALLS_H
#define SMC_CALLS_H

#include "standalone.h"
#include "tokenizer_internal.h"

#define SMC_CALL_MAGIC 0x6c6c6163u /* "call" */
#define SMC_CALL_VERSION 1u
#define SMC_CALL_NONE 0xffffu   /* no state: a byte that can't come, an edge that calls nothing */
#define SMC_CALL_RETURN 0xfffeu /* the automaton that was called ends */

#define SMC_CALL_DEPTH 64 /* lists and calls within each other */

enum { SMC_CALL_MAY_END = 1, SMC_CALL_MUST_END = 2 }; /* flags of a state: the text may, it must end there */

enum smc_call_section {
  SMC_CALL_CLASSES,   /* uint8_t [256]: of every byte */
  SMC_CALL_STEPS,     /* uint16_t [states][classes]: the state after a byte */
  SMC_CALL_FLAGS,     /* uint8_t [states] */
  SMC_CALL_EDGES,     /* struct smc_call_edge */
  SMC_CALL_ORDER,     /* int32_t: tokens that are text, in the order of their bytes */
  SMC_CALL_COMMON,    /* uint8_t: how many bytes they have in common with the one before them */
  SMC_CALL_ADDED,     /* uint8_t: how many more they have … */
  SMC_CALL_SUFFIXES,  /* uint8_t: … and these */
  SMC_CALL_FUNCTIONS, /* struct smc_called */
  SMC_CALL_ARGUMENTS, /* struct smc_span: their names */
  SMC_CALL_TEXTS,
  SMC_CALL_SECTIONS
};

/* What a token leads to; with `behind` it calls the automaton that begins in state `to`. */
struct smc_call_edge {
  uint32_t state;
  int32_t token;
  uint16_t to, behind;
};

struct smc_called {
  struct smc_span name, token; /* token: the text of its function token, or empty */
  uint32_t first, count;       /* of its arguments */
};

struct smc_call_header {
  uint32_t magic, version, size, state_count, class_count;
  uint32_t by_tokens;            /* whether calls begin with function tokens; else they are JSON */
  struct smc_span before, after; /* the prompt around a query */
  struct smc_section sections[SMC_CALL_SECTIONS];
};

struct smc_call_tables {
  const struct smc_call_header *header;
  const uint8_t *classes, *flags, *common, *added, *suffixes, *texts;
  const uint16_t *steps;
  const struct smc_call_edge *edges;
  const int32_t *order;
  const struct smc_called *functions;
  const struct smc_span *arguments;
};

const struct smc_call_tables *smc_calls_tables(const struct smc_calls *calls);

#endif
