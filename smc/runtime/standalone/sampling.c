/* Choosing the next token from logits: filter by filter what smc/runtime/sampling.py does, in the same precision, so that
 * the same seed gives the same tokens. */
#include "standalone.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LIKELY 1e-4 /* of the likeliest token's probability: seldom must less likely ones be sorted */

uint64_t smc_random(uint64_t *state) {
  uint64_t bits = *state += 0x9e3779b97f4a7c15u;
  bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
  return bits ^ bits >> 31;
}

void smc_sampler_open(struct smc_sampler *sampler, const struct smc_sampling *options, int32_t vocab_size,
                      const int32_t *prompt, int32_t count) {
  const size_t vocab = (size_t)vocab_size;
  *sampler = (struct smc_sampler){.options = *options, .state = options->seed, .vocab_size = vocab_size};
  sampler->seen = calloc(vocab, 1);
  sampler->scaled = malloc(vocab * sizeof(float));
  sampler->ordered = malloc(vocab * sizeof(float));
  if (!sampler->seen || !sampler->scaled || !sampler->ordered) smc_die_of_memory();
  for (int32_t i = 0; i < count; i++) sampler->seen[prompt[i]] = 1;
}

void smc_sampler_close(struct smc_sampler *sampler) {
  free(sampler->seen);
  free(sampler->scaled);
  free(sampler->ordered);
  *sampler = (struct smc_sampler){0};
}

/* The first of the largest. */
static int32_t largest_of(const float *values, int32_t count) {
  int32_t best = 0;
  for (int32_t i = 1; i < count; i++)
    if (values[i] > values[best]) best = i;
  return best;
}

/* The k-th largest of the values, which end up in another order (Hoare's quickselect). */
static float kth_largest(float *values, int32_t count, int32_t k) {
  int32_t low = 0, high = count - 1;
  while (low < high) {
    const float pivot = values[low + (high - low) / 2];
    int32_t left = low, right = high;
    while (left <= right) {
      while (values[left] > pivot) left++;
      while (values[right] < pivot) right--;
      if (left > right) break;
      const float swap = values[left];
      values[left++] = values[right];
      values[right--] = swap;
    }
    if (k - 1 <= right) high = right;
    else if (k - 1 >= left) low = left;
    else break;
  }
  return values[k - 1];
}

static int descending(const void *a, const void *b) {
  const float x = *(const float *)a, y = *(const float *)b;
  return (x < y) - (x > y);
}

/* The logit of the last of the fewest most likely tokens whose probabilities reach top_p. */
static float top_p_threshold(const struct smc_sampler *sampler, float largest) {
  const float *scaled = sampler->scaled;
  float *ordered = sampler->ordered;
  double sum = 0;
  for (int32_t i = 0; i < sampler->vocab_size; i++) sum += exp((double)scaled[i] - (double)largest);
  const double wanted = sampler->options.top_p * sum;
  for (int everything = 0;; everything = 1) {
    int32_t count = 0;
    for (int32_t i = 0; i < sampler->vocab_size; i++)
      if (everything || exp((double)scaled[i] - (double)largest) >= LIKELY) ordered[count++] = scaled[i];
    qsort(ordered, (size_t)count, sizeof *ordered, descending);
    double reached = 0;
    for (int32_t i = 0; i < count; i++)
      if ((reached += exp((double)ordered[i] - (double)largest)) >= wanted) return ordered[i];
    if (everything) return ordered[count - 1];
  }
}

static void exclude_below(struct smc_sampler *sampler, double threshold) {
  for (int32_t i = 0; i < sampler->vocab_size; i++)
    if ((double)sampler->scaled[i] < threshold) sampler->scaled[i] = -INFINITY;
}

static void filter(struct smc_sampler *sampler) {
  const struct smc_sampling *options = &sampler->options;
  const int32_t vocab = sampler->vocab_size;
  for (int32_t i = 0; i < vocab; i++) sampler->scaled[i] /= (float)options->temperature;
  if (options->top_k > 0 && options->top_k < vocab) {
    memcpy(sampler->ordered, sampler->scaled, (size_t)vocab * sizeof(float));
    exclude_below(sampler, (double)kth_largest(sampler->ordered, vocab, (int32_t)options->top_k));
  }
  const float largest = sampler->scaled[largest_of(sampler->scaled, vocab)];
  if (options->top_p < 1) exclude_below(sampler, (double)top_p_threshold(sampler, largest));
  if (options->min_p > 0) exclude_below(sampler, (double)largest + log(options->min_p)); /* p < min_p * p_max */
}

/* One token with the probability that softmax gives it. */
static int32_t draw(struct smc_sampler *sampler) {
  const float *scaled = sampler->scaled;
  const int32_t best = largest_of(scaled, sampler->vocab_size);
  if (!isfinite(scaled[best])) return best; /* no distribution to draw from */
  double sum = 0, reached = 0;
  for (int32_t i = 0; i < sampler->vocab_size; i++) sum += exp((double)scaled[i] - (double)scaled[best]);
  const double target = (double)(smc_random(&sampler->state) >> 11) * 0x1p-53 * sum;
  for (int32_t i = 0; i < sampler->vocab_size; i++) {
    reached += exp((double)scaled[i] - (double)scaled[best]);
    if (reached > target) return i;
  }
  return best; /* only by rounding */
}

int smc_takes_largest(const struct smc_sampling *options) { return options->temperature == 0 && options->repetition_penalty == 1; }

int32_t smc_sample(struct smc_sampler *sampler, const float *logits) {
  const float penalty = (float)sampler->options.repetition_penalty;
  memcpy(sampler->scaled, logits, (size_t)sampler->vocab_size * sizeof(float));
  for (int32_t i = 0; i < sampler->vocab_size && penalty != 1; i++)
    if (sampler->seen[i]) sampler->scaled[i] = logits[i] < 0 ? logits[i] * penalty : logits[i] / penalty;
  int32_t token;
  if (sampler->options.temperature == 0) {
    token = largest_of(sampler->scaled, sampler->vocab_size);
  } else {
    filter(sampler);
    token = draw(sampler);
  }
  sampler->seen[token] = 1;
  return token;
}
