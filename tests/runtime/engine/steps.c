/* Two models on one pool, each used by a thread of its own, while a third thread cancels steps now and then: for the
 * sanitizers. Every result is compared with a model of one thread that runs the same tokens alone.
 *
 * Then models are closed while two threads run steps of theirs.
 *
 *   steps ARTIFACT THREADS ROUNDS
 */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { VOCAB = 97, SEQUENCES = 3, LENGTH = 200 };

static const char *path;
static int rounds, stride;
static smc_pool *pool;
static smc_model *models[2];
static atomic_int over, cancelled;

#define REQUIRE(condition)                                                                                             \
  do {                                                                                                                 \
    if (!(condition)) {                                                                                                \
      fprintf(stderr, "line %d: not %s\n", __LINE__, #condition);                                                      \
      exit(1);                                                                                                         \
    }                                                                                                                  \
  } while (0)

static uint32_t next_random(uint32_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 17;
  return *state ^= *state << 5;
}

static smc_model *open_model(int32_t threads, smc_pool *shared) {
  char error[SMC_ERROR_BYTES];
  smc_model *model;
  const smc_options options = {
      .size = sizeof options, .sequences = SEQUENCES, .threads = threads, .path = path, .pool = shared};
  if (smc_engine.open(&options, &model, error)) {
    fprintf(stderr, "%s\n", error);
    exit(1);
  }
  return model;
}

/* Runs tokens[begin..end) at the end of a sequence, the last of them with logits; again and again where it is
 * cancelled. */
static void run(smc_model *model, int32_t sequence, const int32_t *tokens, int32_t begin, int32_t end, float *logits) {
  smc_token batch[LENGTH];
  for (int32_t i = begin; i < end; i++)
    batch[i - begin] = (smc_token){tokens[i], sequence, i, i, i == end - 1 ? SMC_WANT_LOGITS : 0};
  for (;;) {
    const uint32_t cancels = smc_engine.cancels(model);
    const int status = smc_engine.step(
        model, &(smc_batch){.count = end - begin, .tokens = batch, .logits = logits, .cancels = cancels}, NULL);
    if (status == SMC_OK) return;
    REQUIRE(status == SMC_CANCELLED);
    REQUIRE(smc_engine.sequence_length(model, sequence, NULL) == begin);
    atomic_fetch_add(&cancelled, 1);
  }
}

static void *talk(void *argument) {
  smc_model *model = models[*(int *)argument], *alone = open_model(1, NULL);
  uint32_t random = (uint32_t)*(int *)argument + 5;
  float *logits = malloc((size_t)stride * sizeof *logits), *expected = malloc((size_t)stride * sizeof *expected);
  REQUIRE(logits && expected);
  for (int round = 0; round < rounds; round++) {
    int32_t tokens[LENGTH], length = 0;
    for (int i = 0; i < LENGTH; i++) tokens[i] = (int32_t)(next_random(&random) % VOCAB);
    int32_t sequence = smc_engine.sequence_create(model, NULL);
    const int profiled = round % 2 == 0;
    REQUIRE(!profiled || smc_engine.profile_start(model, NULL) == SMC_OK);
    while (length < LENGTH) {
      const int32_t end = length + 1 + (int32_t)(next_random(&random) % 60);
      run(model, sequence, tokens, length, end < LENGTH ? end : LENGTH, logits);
      length = end < LENGTH ? end : LENGTH;
      if (next_random(&random) % 3 == 0) { /* go on in a copy, a little way back */
        const int32_t copy = smc_engine.sequence_fork(model, sequence, NULL);
        REQUIRE(copy >= 0 && smc_engine.sequence_drop(model, sequence, NULL) == SMC_OK);
        sequence = copy;
        length -= length < LENGTH ? length / 4 : 0;
        REQUIRE(smc_engine.sequence_truncate(model, sequence, length, NULL) == SMC_OK);
      }
    }
    smc_profile profile = {.size = sizeof profile};
    REQUIRE(!profiled || (smc_engine.profile_stop(model, &profile, NULL) == SMC_OK && profile.tokens >= LENGTH));
    const int32_t whole = smc_engine.sequence_create(alone, NULL);
    run(alone, whole, tokens, 0, LENGTH, expected);
    REQUIRE(!memcmp(logits, expected, VOCAB * sizeof *logits));
    REQUIRE(smc_engine.sequence_drop(alone, whole, NULL) == SMC_OK &&
            smc_engine.sequence_drop(model, sequence, NULL) == SMC_OK);
  }
  smc_engine.close(alone);
  free(logits);
  free(expected);
  return NULL;
}

static void *disturb(void *argument) {
  (void)argument;
  for (uint32_t random = 3; !atomic_load(&over);) {
    smc_engine.cancel(models[next_random(&random) % 2]);
    usleep(next_random(&random) % 2000);
  }
  return NULL;
}

/* ---- closing */

extern int fake_block_microseconds;
static atomic_int ended, ended_early, next_sequence;

static void *step_once(void *argument) {
  smc_model *model = argument;
  float *logits = malloc((size_t)stride * sizeof *logits);
  smc_token batch[LENGTH];
  const int32_t sequence = atomic_fetch_add(&next_sequence, 1);
  REQUIRE(logits);
  for (int32_t i = 0; i < LENGTH; i++)
    batch[i] = (smc_token){i % VOCAB, sequence, i, i, i == LENGTH - 1 ? SMC_WANT_LOGITS : 0};
  const int status = smc_engine.step(model, &(smc_batch){.count = LENGTH, .tokens = batch, .logits = logits}, NULL);
  REQUIRE(status == SMC_OK || status == SMC_CANCELLED);
  atomic_fetch_add(&ended_early, status == SMC_CANCELLED);
  atomic_fetch_add(&ended, 1);
  free(logits);
  return NULL;
}

/* One thread runs a step of a second and the other waits for it: both must end, and then no one uses the model. */
static void close_while_running(void) {
  pthread_t steppers[2];
  smc_model *model = open_model(0, pool);
  atomic_store(&ended, 0);
  atomic_store(&next_sequence, 0);
  for (int i = 0; i < 2; i++) REQUIRE(smc_engine.sequence_create(model, NULL) == i);
  for (int i = 0; i < 2; i++) REQUIRE(!pthread_create(&steppers[i], NULL, step_once, model));
  while (atomic_load(&model->callers) + atomic_load(&ended) < 2) usleep(1000);
  smc_engine.close(model);
  for (int i = 0; i < 2; i++) pthread_join(steppers[i], NULL);
}

int main(int count, char **arguments) {
  if (count != 4) return 2;
  path = arguments[1];
  rounds = atoi(arguments[3]);
  REQUIRE(smc_engine.pool_create(atoi(arguments[2]), &pool) == SMC_OK);
  models[0] = open_model(0, pool);
  models[1] = open_model(0, pool);
  smc_info info = {.size = sizeof info};
  REQUIRE(smc_engine.info(models[0], &info, NULL) == SMC_OK);
  stride = info.logits_stride;
  pthread_t talkers[2], disturber;
  int numbers[] = {0, 1};
  for (int i = 0; i < 2; i++) REQUIRE(!pthread_create(&talkers[i], NULL, talk, &numbers[i]));
  REQUIRE(!pthread_create(&disturber, NULL, disturb, NULL));
  for (int i = 0; i < 2; i++) pthread_join(talkers[i], NULL);
  atomic_store(&over, 1);
  pthread_join(disturber, NULL);
  for (int i = 0; i < 2; i++) smc_engine.close(models[i]);
  fake_block_microseconds = 5000 * atoi(arguments[2]);
  for (int round = 0; round < rounds; round++) close_while_running();
  REQUIRE(atomic_load(&ended_early) > 0);
  smc_engine.pool_destroy(pool);
  printf("%d\n", atomic_load(&cancelled));
  return 0;
}
