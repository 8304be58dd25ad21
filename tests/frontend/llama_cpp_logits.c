// llama.cpp's logits: llama_cpp_logits FILE.gguf TOKEN... writes float32 [tokens, vocabulary] to standard output.
// Keys and values are float32, attention is computed in the plain way.

#include <stdio.h>
#include <stdlib.h>

#include "llama.h"

static void report_errors(enum ggml_log_level level, const char *text, void *unused) {
  (void)unused;
  if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

int main(int count, char **arguments) {
  if (count < 3) return 2;
  int tokens = count - 2;
  struct llama_batch batch = llama_batch_init(tokens, 0, 1);
  batch.n_tokens = tokens;
  for (int i = 0; i < tokens; i++) {
    batch.token[i] = atoi(arguments[i + 2]);
    batch.pos[i] = i;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = 1;
  }
  llama_log_set(report_errors, NULL);
  llama_backend_init();
  struct llama_model *model = llama_model_load_from_file(arguments[1], llama_model_default_params());
  if (!model) return 1;
  struct llama_context_params params = llama_context_default_params();
  params.n_ctx = 0; // the model's
  params.n_batch = params.n_ubatch = tokens;
  params.n_threads = params.n_threads_batch = 1;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.type_k = params.type_v = GGML_TYPE_F32;
  struct llama_context *context = llama_init_from_model(model, params);
  if (!context || llama_decode(context, batch)) return 1;
  size_t numbers = (size_t)tokens * llama_vocab_n_tokens(llama_model_get_vocab(model));
  return fwrite(llama_get_logits(context), sizeof(float), numbers, stdout) != numbers;
}
