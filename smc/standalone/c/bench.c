/* How fast the model runs here, as `smc bench` measures it. */
#include "standalone.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct speeds {
  double *seconds; /* [runs] */
  int32_t tokens;
  double median, slowest, fastest; /* tokens per second */
};

/* Fixed tokens, spread over the vocabulary: the same in every run. */
static int32_t *fixed_tokens(const struct smc_session *session, int32_t start, int32_t count) {
  int32_t *tokens = malloc(((size_t)count + 1) * sizeof *tokens);
  if (!tokens) smc_die_of_memory();
  for (int32_t i = 0; i < count; i++) tokens[i] = (int32_t)(((int64_t)start + i) * 7919 % session->info.vocab_size);
  return tokens;
}

/* Runs tokens in one call, or one by one with logits; returns the seconds. */
static double run(struct smc_session *session, int32_t start, int32_t count, int one_by_one) {
  int32_t *tokens = fixed_tokens(session, start, count);
  const double started = smc_seconds();
  int status = 0;
  if (!one_by_one) status = smc_session_extend(session, tokens, count);
  for (int32_t i = 0; i < count && one_by_one && !status; i++) status = smc_session_extend(session, tokens + i, 1);
  const double seconds = smc_seconds() - started;
  free(tokens);
  if (status) exit(SMC_EXIT_INTERRUPTED);
  return seconds;
}

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void summarize(struct speeds *speeds, int32_t runs) {
  for (int32_t i = 0; i < runs; i++) speeds->seconds[i] = speeds->tokens / speeds->seconds[i];
  qsort(speeds->seconds, (size_t)runs, sizeof *speeds->seconds, ascending);
  speeds->slowest = speeds->seconds[0], speeds->fastest = speeds->seconds[runs - 1];
  speeds->median = (speeds->seconds[(runs - 1) / 2] + speeds->seconds[runs / 2]) / 2;
}

static uint64_t kv_bytes_used(const struct smc_session *session) {
  smc_info info = {.size = sizeof info};
  smc_engine.info(session->model, &info, NULL);
  return info.kv_bytes_used;
}

/* Says how far the measuring is and how long it will take, between runs: on a terminal in one line that changes,
 * elsewhere in a line from time to time. */
static void show_progress(double started, double *shown, int64_t done, int64_t total) {
  enum { LINE_SECONDS = 10 };
  const int terminal = isatty(STDERR_FILENO);
  const double now = smc_seconds();
  if (terminal && done == total) fputs("\r\033[K", stderr);
  if (done == total || (!terminal && now - *shown < LINE_SECONDS)) return;
  fprintf(stderr, "%smeasure: %lld %%, about %.0f s left%s", terminal ? "\r\033[K" : "",
          (long long)(100 * done / total), (now - started) * (double)(total - done) / (double)done,
          terminal ? "" : "\n");
  *shown = now;
}

struct report {
  struct speeds prefill, decode;
  uint64_t kv_bytes_used, peak_bytes;
  double bytes_per_token, gb_per_s; /* of decode */
};

static void measure(struct smc_session *session, const struct smc_command *command, struct report *report) {
  const int32_t depth = command->depth, context = session->info.context_length;
  report->prefill =
      (struct speeds){.tokens = command->prompt_tokens, .seconds = calloc((size_t)command->repeat, sizeof(double))};
  report->decode =
      (struct speeds){.tokens = command->decode_tokens, .seconds = calloc((size_t)command->repeat, sizeof(double))};
  if (!report->prefill.seconds || !report->decode.seconds) smc_die_of_memory();
  run(session, 0, context > 8 ? 8 : context, 0); /* pages, caches and threads wake up */
  smc_session_truncate(session, 0);
  if (depth) run(session, 0, depth, 0);
  const double started = smc_seconds();
  double shown = started;
  for (int32_t i = 0; i < command->repeat; i++)
    for (int one_by_one = 0; one_by_one < 2; one_by_one++) {
      struct speeds *speeds = one_by_one ? &report->decode : &report->prefill;
      if (speeds->tokens == 0) continue;
      speeds->seconds[i] = run(session, one_by_one, speeds->tokens, one_by_one);
      const uint64_t used = kv_bytes_used(session);
      if (used > report->kv_bytes_used) report->kv_bytes_used = used;
      smc_session_truncate(session, depth);
      if (!command->quiet)
        show_progress(started, &shown, 2 * (int64_t)i + one_by_one + 1, 2 * (int64_t)command->repeat);
    }
  if (!command->quiet) show_progress(started, &shown, 1, 1);
  summarize(&report->prefill, command->repeat);
  summarize(&report->decode, command->repeat);
  /* A step reads the keys and values of all tokens up to its own. */
  report->bytes_per_token = (double)session->info.token_weight_bytes +
                            (double)session->info.kv_bytes_per_token * (depth + (command->decode_tokens + 1) / 2.0);
  report->gb_per_s = report->bytes_per_token * report->decode.median / 1e9;
  report->peak_bytes = smc_peak_memory();
}

static void add_json_speeds(struct smc_buffer *out, const char *name, const struct speeds *speeds) {
  smc_add_format(out, ", \"%s\": {\"tokens\": %d, \"tokens_per_s\": %.9g, \"slowest\": %.9g, \"fastest\": %.9g", name,
                 speeds->tokens, speeds->median, speeds->slowest, speeds->fastest);
}

static void add_json_report(struct smc_buffer *out, const struct smc_session *session,
                            const struct smc_command *command, const struct report *report) {
  const smc_info *info = &session->info;
  smc_add_format(out, "{\"artifact\": ");
  smc_add_json_text(out, info->name);
  smc_add_format(out, ", \"level\": \"%s\", \"threads\": %d, \"kv_dtype\": \"%s\", \"depth\": %d, \"repeat\": %d",
                 info->level, info->threads, smc_kv_names[info->kv_dtype], command->depth, command->repeat);
  if (report->prefill.tokens) {
    add_json_speeds(out, "prefill", &report->prefill);
    smc_add_format(out, "}");
  }
  if (report->decode.tokens) {
    add_json_speeds(out, "decode", &report->decode);
    smc_add_format(out, ", \"gb_per_s\": %.9g, \"bytes_per_token\": %.0f}", report->gb_per_s, report->bytes_per_token);
  }
  smc_add_format(out, ", \"weight_bytes\": %llu, \"token_weight_bytes\": %llu", (unsigned long long)info->weight_bytes,
                 (unsigned long long)info->token_weight_bytes);
  smc_add_format(
      out,
      ", \"kv_bytes_used\": %llu, \"activation_bytes\": %llu, \"peak_memory_bytes\": %llu, \"load_seconds\": %.9g}\n",
      (unsigned long long)report->kv_bytes_used, (unsigned long long)info->activation_bytes,
      (unsigned long long)report->peak_bytes, session->load_seconds);
}

static void add_speeds(struct smc_buffer *out, const char *name, const struct speeds *speeds, int32_t depth) {
  char after[32] = "";
  if (depth) snprintf(after, sizeof after, " after %d", depth);
  smc_add_format(out, "%-8s%6d tokens%s: %.1f tokens/s (%.1f to %.1f)", name, speeds->tokens, after, speeds->median,
                 speeds->slowest, speeds->fastest);
}

static void add_report(struct smc_buffer *out, const struct smc_session *session, const struct smc_command *command,
                       const struct report *report) {
  const smc_info *info = &session->info;
  const double mebibyte = 1 << 20;
  smc_add_format(out, "%s: %d threads, level %s, %s KV cache\n", info->name, info->threads, info->level,
                 smc_kv_names[info->kv_dtype]);
  if (report->prefill.tokens) {
    add_speeds(out, "prefill", &report->prefill, command->depth);
    smc_add_format(out, "\n");
  }
  if (report->decode.tokens) {
    add_speeds(out, "decode", &report->decode, command->depth);
    smc_add_format(out, ", %.1f GB/s\n", report->gb_per_s);
  }
  smc_add_format(out, "memory  %.1f MiB at the peak: weights %.1f, KV cache %.1f, activations %.1f\n",
                 (double)report->peak_bytes / mebibyte, (double)info->weight_bytes / mebibyte,
                 (double)report->kv_bytes_used / mebibyte, (double)info->activation_bytes / mebibyte);
  smc_add_format(out, "load    %.3f s\n", session->load_seconds);
}

int smc_bench(struct smc_session *session, const struct smc_command *command) {
  const int64_t longer =
      command->prompt_tokens > command->decode_tokens ? command->prompt_tokens : command->decode_tokens;
  if (command->depth + longer > session->info.context_length)
    smc_die("%lld tokens do not fit the context of %d; raise --ctx or measure fewer",
            (long long)(command->depth + longer), session->info.context_length);
  struct report report = {0};
  struct smc_buffer out = {0};
  measure(session, command, &report);
  if (command->json) add_json_report(&out, session, command, &report);
  else add_report(&out, session, command, &report);
  smc_print(out.bytes, out.length);
  smc_buffer_free(&out);
  free(report.prefill.seconds);
  free(report.decode.seconds);
  return 0;
}
