/* What this file is. */
#include "standalone.h"

#include <string.h>

static void add_levels(struct smc_buffer *out, const char *quote) {
  for (int32_t i = 0; i < smc_program.level_count; i++)
    smc_add_format(out, "%s%s%s%s", i ? ", " : "", quote, smc_program.levels[i].name, quote);
}

static void add_text(struct smc_buffer *out, const struct smc_session *session) {
  const smc_info *info = &session->info;
  smc_add_format(out, "%s (%s), compiled by smc %s for %s\n", info->name, smc_facts.architecture, smc_facts.smc_version,
                 smc_facts.target);
  smc_add_format(out, "  parameters  %.1f million, %.2f bits each: %.1f MB of weights\n",
                 (double)smc_facts.parameters / 1e6, smc_facts.bits_per_weight, (double)info->weight_bytes / 1e6);
  smc_add_format(out, "  layers      %d, %d wide, %d tokens in the vocabulary\n", info->layers, info->hidden_size,
                 info->vocab_size);
  smc_add_format(out, "  context     %d tokens, %.1f KiB each in the KV cache\n", info->context_length,
                 (double)info->kv_bytes_per_token / 1024);
  smc_add_format(out, "  file        %.1f MB\n", (double)session->file.size / 1e6);
  smc_add_format(out, "  levels      ");
  add_levels(out, "");
  smc_add_format(out, "; here %s with %d threads\n", info->level, info->threads);
  if (!smc_facts.no_chat)
    smc_add_format(out, "  chat        %s\n", smc_facts.has_template ? "yes" : "no, there is no chat template");
  else smc_add_format(out, "  chat        no, the chat template %s\n", smc_facts.no_chat);
  const char *label = "made from";
  for (const char *line = smc_facts.provenance, *end; *line; line = *end ? end + 1 : end, label = "") {
    end = strchr(line, '\n') ? strchr(line, '\n') : line + strlen(line);
    smc_add_format(out, "  %-12s", label);
    smc_buffer_add(out, line, (size_t)(end - line));
    smc_add_format(out, "\n");
  }
}

static void add_json(struct smc_buffer *out, const struct smc_session *session) {
  const smc_info *info = &session->info;
  smc_add_format(out, "{\"name\": ");
  smc_add_json_text(out, info->name);
  smc_add_format(out, ", \"architecture\": ");
  smc_add_json_text(out, smc_facts.architecture);
  smc_add_format(
      out,
      ", \"smc\": \"%s\", \"target\": \"%s\", \"parameters\": %llu, \"bits_per_weight\": %.9g, \"weight_bytes\": %llu",
      smc_facts.smc_version, smc_facts.target, (unsigned long long)smc_facts.parameters, smc_facts.bits_per_weight,
      (unsigned long long)info->weight_bytes);
  smc_add_format(
      out,
      ", \"layers\": %d, \"hidden_size\": %d, \"vocab_size\": %d, \"context_length\": %d, \"kv_bytes_per_token\": %llu",
      info->layers, info->hidden_size, info->vocab_size, info->context_length,
      (unsigned long long)info->kv_bytes_per_token);
  smc_add_format(out, ", \"file_bytes\": %llu, \"levels\": [", (unsigned long long)session->file.size);
  add_levels(out, "\"");
  smc_add_format(out, "], \"level\": \"%s\", \"threads\": %d, \"chat\": %s, \"provenance\": ", info->level,
                 info->threads, smc_facts.has_template && !smc_facts.no_chat ? "true" : "false");
  smc_add_json_text(out, smc_facts.provenance);
  smc_add_format(out, "}\n");
}

int smc_print_info(struct smc_session *session, const struct smc_command *command) {
  struct smc_buffer out = {0};
  if (command->json) add_json(&out, session);
  else add_text(&out, session);
  smc_print(out.bytes, out.length);
  smc_buffer_free(&out);
  return 0;
}
