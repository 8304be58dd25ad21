/* The command line: the options of `smc run`, `smc chat` and `smc bench`, with their defaults. */
#include "standalone.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

const char *const smc_kv_names[] = {"f16", "f32", "i8"};

static const char help[] =
    "Usage: %s [OPTIONS] [PROMPT]\n"
    "\n"
    "Generate text with %s, printed as it comes.\n"
    "\n"
    "If the model has a chat template, PROMPT is a user's message; otherwise, and with --raw, it is a text to "
    "continue.\n"
    "Without PROMPT, on a terminal, the program chats. Piped text comes before PROMPT, with an empty line between "
    "them;\n"
    "without PROMPT, or if it is \"-\", it is the prompt. Ctrl-C ends the text, with exit status 130. Sampling "
    "options\n"
    "that you leave out come from the checkpoint's generation config, else the text is greedy.\n"
    "\n"
    "--json --stream prints {\"event\": \"text\", \"text\": …} for each part and at the end\n"
    "{\"event\": \"result\", …} as --json.\n"
    "\n"
    "Instead of generating text:\n"
    "  --chat                   Talk with the model line by line, even if standard input is not a terminal.\n"
    "  --bench                  Measure tokens per second and memory.\n"
    "  --info                   Show what this file is.\n"
    "  --verify                 Compare all of this file with its checksums.\n"
    "  -V, --version            Show which smc made this file.\n"
    "  -h, --help               Show this help.\n"
    "\n"
    "Options:\n"
    "  --system TEXT            A system message before the prompt.\n"
    "  --raw                    Continue the prompt as plain text, without the chat template.\n"
    "  -n, --max-tokens N       Maximum number of tokens; by default until the model ends or the context is full.\n"
    "  --temperature T          Temperature of the sampling; 0 is greedy.\n"
    "  --top-k K                Draw only from the K likeliest tokens; 0: from all.\n"
    "  --top-p P                Draw only from the likeliest tokens that together have probability P.\n"
    "  --min-p P                Draw only from tokens at least P times as likely as the likeliest.\n"
    "  --repetition-penalty X   Penalty for tokens that occurred before; 1: none.\n"
    "  --seed N                 Seed of the sampling: the same seed gives the same text.\n"
    "  --stop TEXT              Text that ends the answer and is not shown; may be given again.\n"
    "  --ctx N                  Context length in tokens; by default the one that the model was trained for.\n"
    "  -t, --threads N          Number of threads; by default one per (fast) CPU that the process may use.\n"
    "  --kv-dtype f16|f32|i8    Number format of the KV cache; by default f16.\n"
    "  --level NAME             CPU feature level to run at; by default the best that this CPU has.\n"
    "  --logprobs N             Show every token's log-probability and the N likeliest.\n"
    "  --json                   Print the whole result as JSON at the end.\n"
    "  --stream                 With --json, print a line of JSON for every event.\n"
    "  --stats                  Print speed and memory to standard error.\n"
    "  -q, --quiet              Print only errors and results: no progress, no notes.\n"
    "  -v, --verbose            Print more: what is used and chosen.\n"
    "\n"
    "Options of --bench:\n"
    "  --prompt-tokens P        Tokens of the prompt; 0 skips prefill; by default 512.\n"
    "  --decode-tokens D        Tokens to decode; 0 skips decoding; by default 128.\n"
    "  --depth N                Tokens in the KV cache before each run; by default 0.\n"
    "  --repeat R               Number of runs; the medians are shown; by default 5.\n";

enum {
  CHAT = 256,
  BENCH,
  INFO,
  VERIFY,
  SYSTEM,
  RAW,
  TEMPERATURE,
  TOP_K,
  TOP_P,
  MIN_P,
  REPETITION_PENALTY,
  SEED,
  STOP,
  CTX,
  KV_DTYPE,
  LEVEL,
  LOGPROBS,
  JSON,
  STREAM,
  STATS,
  PROMPT_TOKENS,
  DECODE_TOKENS,
  DEPTH,
  REPEAT
};

static const struct option options[] = {
    {"chat", no_argument, NULL, CHAT},
    {"bench", no_argument, NULL, BENCH},
    {"info", no_argument, NULL, INFO},
    {"verify", no_argument, NULL, VERIFY},
    {"version", no_argument, NULL, 'V'},
    {"help", no_argument, NULL, 'h'},
    {"system", required_argument, NULL, SYSTEM},
    {"raw", no_argument, NULL, RAW},
    {"max-tokens", required_argument, NULL, 'n'},
    {"temperature", required_argument, NULL, TEMPERATURE},
    {"top-k", required_argument, NULL, TOP_K},
    {"top-p", required_argument, NULL, TOP_P},
    {"min-p", required_argument, NULL, MIN_P},
    {"repetition-penalty", required_argument, NULL, REPETITION_PENALTY},
    {"seed", required_argument, NULL, SEED},
    {"stop", required_argument, NULL, STOP},
    {"ctx", required_argument, NULL, CTX},
    {"threads", required_argument, NULL, 't'},
    {"kv-dtype", required_argument, NULL, KV_DTYPE},
    {"level", required_argument, NULL, LEVEL},
    {"logprobs", required_argument, NULL, LOGPROBS},
    {"json", no_argument, NULL, JSON},
    {"stream", no_argument, NULL, STREAM},
    {"stats", no_argument, NULL, STATS},
    {"quiet", no_argument, NULL, 'q'},
    {"verbose", no_argument, NULL, 'v'},
    {"prompt-tokens", required_argument, NULL, PROMPT_TOKENS},
    {"decode-tokens", required_argument, NULL, DECODE_TOKENS},
    {"depth", required_argument, NULL, DEPTH},
    {"repeat", required_argument, NULL, REPEAT},
    {0},
};

/* The long name of an option by its value. */
static const char *name_of(int value) {
  const struct option *option = options;
  while (option->name && option->val != value) option++;
  return option->name ? option->name : "";
}

static int32_t count_of(int option, const char *text, int32_t least) {
  char *end;
  errno = 0;
  const long value = strtol(text, &end, 10);
  if (errno || *end || end == text || value < least || value > INT32_MAX)
    smc_die("--%s takes a whole number from %d on, not '%s'", name_of(option), least, text);
  return (int32_t)value;
}

static uint64_t seed_of(const char *text) {
  char *end;
  errno = 0;
  const unsigned long long value = strtoull(text, &end, 10);
  if (errno || *end || end == text || strchr(text, '-'))
    smc_die("--seed takes a whole number from 0 to below 2^64, not '%s'", text);
  return value;
}

static double number_of(int option, const char *text) {
  char *end;
  const double value = strtod(text, &end);
  if (*end || end == text) smc_die("--%s takes a number, not '%s'", name_of(option), text);
  return value;
}

static void check_sampling(const struct smc_sampling *sampling) {
  if (!(sampling->temperature >= 0 && sampling->temperature < INFINITY))
    smc_die("temperature is %g, but must be 0 (greedy) or more", sampling->temperature);
  if (!(sampling->top_p > 0 && sampling->top_p <= 1))
    smc_die("top_p is %g, but must be above 0 and at most 1", sampling->top_p);
  if (!(sampling->min_p >= 0 && sampling->min_p <= 1)) smc_die("min_p is %g, but must be from 0 to 1", sampling->min_p);
  if (!(sampling->repetition_penalty >= 1e-30 && sampling->repetition_penalty <= 1e30))
    smc_die("repetition_penalty is %g, but must be from 1e-30 to 1e30", sampling->repetition_penalty);
}

static void set_mode(struct smc_command *command, enum smc_mode mode) {
  if (command->mode != SMC_MODE_RUN && command->mode != mode)
    smc_die("--chat, --bench, --info and --verify exclude each other: give one of them");
  command->mode = mode;
}

/* What was printed is all that was requested. */
static _Noreturn void finish(void) {
  if (fflush(stdout) || ferror(stdout)) smc_die("can't write to standard output: %s", strerror(errno));
  exit(0);
}

static void set_option(struct smc_command *command, int option, const char *value, char *program) {
  struct smc_sampling *sampling = &command->sampling;
  switch (option) {
    case 'h': printf(help, program, smc_program.name); finish();
    case 'V':
      printf("%s, compiled by smc %s for %s\n", smc_program.name, smc_facts.smc_version, smc_facts.target);
      finish();
    case CHAT: set_mode(command, SMC_MODE_CHAT); break;
    case BENCH: set_mode(command, SMC_MODE_BENCH); break;
    case INFO: set_mode(command, SMC_MODE_INFO); break;
    case VERIFY: set_mode(command, SMC_MODE_VERIFY); break;
    case SYSTEM: command->system = value; break;
    case RAW: command->raw = 1; break;
    case LOGPROBS: command->logprobs = count_of(option, value, 0); break;
    case JSON: command->json = 1; break;
    case STREAM: command->stream = 1; break;
    case STATS: command->stats = 1; break;
    case 'q': command->quiet = 1; break;
    case 'v': command->verbose = 1; break;
    case 'n': command->max_tokens = count_of(option, value, 0); break;
    case TEMPERATURE: sampling->temperature = number_of(option, value); break;
    case TOP_K: sampling->top_k = count_of(option, value, 0); break;
    case TOP_P: sampling->top_p = number_of(option, value); break;
    case MIN_P: sampling->min_p = number_of(option, value); break;
    case REPETITION_PENALTY: sampling->repetition_penalty = number_of(option, value); break;
    case SEED: sampling->seed = seed_of(value); break;
    case STOP:
      if (*value) command->stops[command->stop_count++] = value;
      break;
    case CTX: command->context_length = count_of(option, value, 0); break;
    case 't': command->threads = count_of(option, value, 0); break;
    case KV_DTYPE:
      for (command->kv_dtype = SMC_KV_F16; strcmp(value, smc_kv_names[command->kv_dtype]); command->kv_dtype++)
        if (command->kv_dtype == SMC_KV_I8) smc_die("--kv-dtype takes f16, f32 or i8, not '%s'", value);
      break;
    case LEVEL: command->level = value; break;
    case PROMPT_TOKENS: command->prompt_tokens = count_of(option, value, 0); break;
    case DECODE_TOKENS: command->decode_tokens = count_of(option, value, 0); break;
    case DEPTH: command->depth = count_of(option, value, 0); break;
    case REPEAT: command->repeat = count_of(option, value, 1); break;
  }
}

/* A seed that differs from run to run; nothing secret hangs on it. */
static uint64_t any_seed(void) {
  struct timespec time;
  clock_gettime(CLOCK_REALTIME, &time);
  uint64_t state = (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
  state ^= (uint64_t)getpid() << 40;
  return smc_random(&state);
}

static void choose_mode(struct smc_command *command) {
  if (command->mode != SMC_MODE_RUN) {
    if (command->prompt)
      smc_die("--chat, --bench, --info and --verify take no prompt, but there is '%s'", command->prompt);
  } else if (!command->prompt && !command->raw && isatty(STDIN_FILENO)) {
    command->mode = SMC_MODE_CHAT;
  }
  const int by_tokens = smc_facts.calls == SMC_CALLS_BY_TOKENS && !command->raw; /* needs no template */
  const int chats = !by_tokens && (command->mode == SMC_MODE_CHAT || (command->mode == SMC_MODE_RUN && !command->raw));
  if (chats && smc_facts.has_template && smc_facts.no_chat)
    smc_die("this file can't chat, as the chat template %s: give a prompt and --raw to continue plain text",
            smc_facts.no_chat);
  if (command->mode == SMC_MODE_CHAT && !smc_facts.has_template && !by_tokens)
    smc_die("this model has no chat template: give a prompt to continue");
  if (command->system && by_tokens) smc_die("--system has no place in the prompt of function tokens: leave it away");
  if (command->system && (command->raw || !smc_facts.has_template))
    smc_die("--system needs a chat template%s", command->raw ? ": leave out --raw" : "");
}

/* The prompt; what is piped in comes before it, with an empty line between them. */
static void find_prompt(struct smc_command *command) {
  const char *given = command->prompt && strcmp(command->prompt, "-") ? command->prompt : NULL;
  if (isatty(STDIN_FILENO)) {
    if (!command->prompt) smc_die("there is no prompt: give one as in --raw \"Once upon a time\", or pipe it in");
    if (given) {
      command->prompt_length = strlen(given);
      smc_check_utf8("the prompt", given, command->prompt_length);
      return;
    }
  }
  struct smc_buffer input;
  smc_read_input(&input, given != NULL, command->quiet);
  smc_check_utf8("the prompt on standard input", input.bytes, input.length);
  if (given) {
    smc_check_utf8("the prompt", given, strlen(given));
    if (input.length && *given) smc_buffer_add(&input, "\n\n", 2);
    smc_buffer_add(&input, given, strlen(given));
  }
  command->prompt = command->input = input.bytes, command->prompt_length = input.length;
}

struct smc_command smc_parse_command(int count, char **arguments) {
  struct smc_command command = {.sampling = smc_facts.sampling,
                                .max_tokens = -1,
                                .logprobs = -1,
                                .prompt_tokens = 512,
                                .decode_tokens = 128,
                                .repeat = 5};
  char *program = count > 0 ? arguments[0] : "model";
  command.sampling.seed = any_seed();
  command.stops = calloc((size_t)count + 1, sizeof *command.stops);
  if (!command.stops) smc_die_of_memory();
  opterr = 0;
  for (int option; (option = getopt_long(count, arguments, ":hn:t:Vqv", options, NULL)) != -1;) {
    const char *given = arguments[optind - 1];
    if (option == ':') smc_die("--%s needs a value; see --help", name_of(optopt));
    if (option == '?' && optopt && strchr("hntVqv", optopt) == NULL && optopt < CHAT)
      smc_die("there is no option -%c; see --help", optopt);
    if (option == '?' && optopt) smc_die("--%s takes no value; see --help", name_of(optopt));
    if (option == '?') smc_die("there is no option %s; see --help", given);
    set_option(&command, option, optarg, program);
  }
  if (optind < count) command.prompt = arguments[optind++];
  if (optind < count)
    smc_die("there is more than one prompt: put '%s' and what follows into quotes with the first", arguments[optind]);
  if (command.stream && !command.json) smc_die("--stream needs --json: other output is always printed as it comes");
  if (command.verbose) command.quiet = 0;
  check_sampling(&command.sampling);
  choose_mode(&command);
  if (command.system) smc_check_utf8("--system", command.system, strlen(command.system));
  if (command.mode == SMC_MODE_RUN) find_prompt(&command);
  return command;
}
