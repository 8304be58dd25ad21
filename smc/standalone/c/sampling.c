/* Choosing the next token from logits: filter by filter what smc/runtime/sampling.py does, in float64 as there, so that
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
  sampler->scaled = malloc(vocab * sizeof *sampler->scaled);
  sampler->ordered = malloc(vocab * sizeof *sampler->ordered);
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
static int32_t largest_of(const double *values, int32_t count) {
  int32_t best = 0;
  for (int32_t i = 1; i < count; i++)
    if (values[i] > values[best]) best = i;
  return best;
}

/* The k-th largest of the values, which end up in another order (Hoare's quickselect). */
static double kth_largest(double *values, int32_t count, int32_t k) {
  int32_t low = 0, high = count - 1;
  while (low < high) {
    const double pivot = values[low + (high - low) / 2];
    int32_t left = low, right = high;
    while (left <= right) {
      while (values[left] > pivot) left++;
      while (values[right] < pivot) right--;
      if (left > right) break;
      const double swap = values[left];
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
  const double x = *(const double *)a, y = *(const double *)b;
  return (x < y) - (x > y);
}

/* The score of the last of the fewest most likely tokens whose probabilities reach top_p; the largest is 0. */
static double top_p_threshold(const struct smc_sampler *sampler) {
  const double *scaled = sampler->scaled;
  double *ordered = sampler->ordered;
  double sum = 0;
  for (int32_t i = 0; i < sampler->vocab_size; i++) sum += exp(scaled[i]);
  const double wanted = sampler->options.top_p * sum;
  for (int everything = 0;; everything = 1) {
    int32_t count = 0;
    for (int32_t i = 0; i < sampler->vocab_size; i++)
      if (everything || exp(scaled[i]) >= LIKELY) ordered[count++] = scaled[i];
    qsort(ordered, (size_t)count, sizeof *ordered, descending);
    double reached = 0;
    for (int32_t i = 0; i < count; i++)
      if ((reached += exp(ordered[i])) >= wanted) return ordered[i];
    if (everything) return ordered[count - 1];
  }
}

static void exclude_below(struct smc_sampler *sampler, double threshold) {
  for (int32_t i = 0; i < sampler->vocab_size; i++)
    if (sampler->scaled[i] < threshold) sampler->scaled[i] = -INFINITY;
}

/* Counts from the largest: what a small temperature makes infinite then has no chance. */
static void filter(struct smc_sampler *sampler) {
  const struct smc_sampling *options = &sampler->options;
  const int32_t vocab = sampler->vocab_size;
  const double largest = sampler->scaled[largest_of(sampler->scaled, vocab)];
  for (int32_t i = 0; i < vocab; i++) sampler->scaled[i] = (sampler->scaled[i] - largest) / options->temperature;
  if (options->top_k > 0 && options->top_k < vocab) {
    memcpy(sampler->ordered, sampler->scaled, (size_t)vocab * sizeof *sampler->ordered);
    exclude_below(sampler, kth_largest(sampler->ordered, vocab, (int32_t)options->top_k));
  }
  if (options->top_p < 1) exclude_below(sampler, top_p_threshold(sampler));
  if (options->min_p > 0) exclude_below(sampler, log(options->min_p)); /* p < min_p * p_max */
}

/* One token with the probability that softmax gives it; the largest score is 0. */
static int32_t draw(struct smc_sampler *sampler) {
  const double *scaled = sampler->scaled;
  double sum = 0, reached = 0;
  for (int32_t i = 0; i < sampler->vocab_size; i++) sum += exp(scaled[i]);
  const double target = (double)(smc_random(&sampler->state) >> 11) * 0x1p-53 * sum;
  for (int32_t i = 0; i < sampler->vocab_size; i++) {
    reached += exp(scaled[i]);
    if (reached > target) return i;
  }
  return largest_of(scaled, sampler->vocab_size); /* only by rounding */
}

int smc_takes_largest(const struct smc_sampling *options) {
  return options->temperature == 0 && options->repetition_penalty == 1;
}

int32_t smc_sample(struct smc_sampler *sampler, const float *logits) {
  const double penalty = sampler->options.repetition_penalty;
  double none = 0; /* NaN where a logit is NaN or infinite */
  for (int32_t i = 0; i < sampler->vocab_size; i++) {
    const double logit = (double)logits[i];
    none += logit * 0;
    sampler->scaled[i] = sampler->allowed && !sampler->allowed[i] ? -INFINITY
                         : !sampler->seen[i]                      ? logit
                         : logit < 0                              ? logit * penalty
                                                                  : logit / penalty;
  }
  if (none != 0) smc_die("%s", SMC_SAYS_NOT_FINITE);
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
