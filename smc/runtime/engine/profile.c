/* Profiles: the time that threads spend on each task.
 *
 * Every thread reads the CPU's counter before and after it looks for blocks and behind the barrier, and adds the time
 * since its last reading to one of its counters: a reading costs about 10 ns, and nothing is lost or counted twice. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

static int64_t read_ticks(void) {
#if defined(__x86_64__)
  return (int64_t)__builtin_ia32_rdtsc(); /* runs at a constant rate, the same on all cores, in all CPUs with AVX2 */
#elif defined(__aarch64__)
  int64_t ticks;
  __asm__ __volatile__("mrs %0, cntvct_el0" : "=r"(ticks));
  return ticks;
#else
  return smc_nanoseconds();
#endif
}

static int64_t lap(struct smc_thread_profile *profile) {
  const int64_t now = read_ticks(), time = now - profile->last;
  profile->last = now;
  return time;
}

/* ---- by the threads */

void smc_profile_enter(struct smc_thread_profile *profile) { profile->outside += lap(profile); }

void smc_profile_look(struct smc_thread_profile *profile, const struct smc_phase *phase) {
  const int64_t time = lap(profile);
  if (phase->begin == phase->end) profile->claim += time; /* the phase has just begun */
  else profile->tasks[phase->first_task + phase->task].kernel += time;
}

void smc_profile_found(struct smc_thread_profile *profile, const struct smc_phase *phase, int got) {
  const int64_t time = lap(profile);
  if (!got) {
    profile->tasks[phase->first_task].wait += time;
    return;
  }
  profile->claim += time;
  profile->tasks[phase->first_task + phase->task].pieces++;
}

void smc_profile_pass(struct smc_thread_profile *profile, const struct smc_phase *phase) {
  struct smc_task_time *tasks = profile->tasks + phase->first_task;
  tasks[0].wait += lap(profile);
  for (int32_t i = 0; i < phase->task_count; i++) tasks[i].calls += phase->blocks[i] > 0;
}

/* ---- by the caller */

int smc_profile_start(struct smc_profiler *profiler, const struct smc_program *program, int32_t threads) {
  smc_profile_close(profiler);
  const size_t tasks = (size_t)program->task_count;
  const size_t row = smc_round_up(tasks * sizeof(struct smc_task_time), SMC_CACHE_LINE); /* threads share no line */
  const size_t times = (size_t)threads * sizeof(struct smc_thread_profile), rows = (size_t)threads * row;
  const size_t bytes = times + rows + tasks * sizeof(smc_profile_task);
  void *memory;
  if (posix_memalign(&memory, SMC_CACHE_LINE, bytes)) return SMC_NO_MEMORY;
  memset(memory, 0, bytes);
  uint8_t *place = memory;
  *profiler = (struct smc_profiler){.program = program, .on = 1, .threads = threads, .memory = memory};
  profiler->times = memory;
  profiler->tasks = (smc_profile_task *)(void *)(place + times + rows);
  for (int32_t t = 0; t < threads; t++)
    profiler->times[t].tasks = (struct smc_task_time *)(void *)(place + times + (size_t)t * row);
  for (size_t i = 0; i < tasks; i++) {
    const struct smc_task *task = &program->tasks[i];
    profiler->tasks[i] = (smc_profile_task){
        .function = task->function, .name = task->name, .kernel = task->kernel, .integer = task->integer};
  }
  return SMC_OK;
}

void smc_profile_close(struct smc_profiler *profiler) {
  free(profiler->memory);
  *profiler = (struct smc_profiler){0};
}

/* The time since a thread's last reading up to the end of the last step. A worker that left later gives some back. */
static void settle(struct smc_profiler *profiler) {
  for (int32_t t = 0; profiler->steps && t < profiler->threads; t++)
    profiler->times[t].outside += profiler->end - profiler->times[t].last;
}

void smc_profile_step_begin(struct smc_profiler *profiler) {
  settle(profiler);
  profiler->started = smc_nanoseconds();
  profiler->begin = read_ticks();
  for (int32_t t = 0; t < profiler->threads; t++) profiler->times[t].last = profiler->begin;
}

void smc_profile_step_end(struct smc_profiler *profiler) {
  profiler->end = read_ticks();
  profiler->nanoseconds += smc_nanoseconds() - profiler->started;
  profiler->ticks += profiler->end - profiler->begin;
  profiler->steps++;
}

void smc_profile_add(struct smc_profiler *profiler, int32_t task, double seconds) {
  struct smc_thread_profile *times = &profiler->times[0];
  const int64_t nanoseconds = smc_nanoseconds() - profiler->started;
  const double rate = (double)(read_ticks() - profiler->begin) / (double)(nanoseconds > 0 ? nanoseconds : 1);
  const int64_t ticks = (int64_t)(1e9 * seconds * rate);
  times->tasks[task].kernel += ticks;
  times->tasks[task].calls++;
  times->last += ticks; /* the rest of the step is outside */
}

static uint64_t least(int64_t a, int64_t b) { return (uint64_t)(a < b ? a : b); }

static void count_work(smc_profile_task *total, const struct smc_work *work, int32_t tokens) {
  if (tokens == 0) return;
  total->bytes += work->weight_bytes + (uint64_t)tokens * work->token_bytes;
  total->bytes += least((int64_t)work->chosen_bytes * tokens, (int64_t)work->expert_bytes);
  total->macs += (uint64_t)tokens * work->token_macs;
}

static void count_cache(smc_profile_task *total, const struct smc_work *work, uint64_t read_bytes, int64_t window,
                        const struct smc_tile *tiles, int32_t tile_count) {
  if (!work->cache_reads) return;
  for (const struct smc_tile *tile = tiles; tile < tiles + tile_count; tile++) {
    /* From what the first token sees to the last token. */
    const int64_t first = (int64_t)tile->index + 1, read = (int64_t)least(first, window) + tile->count - 1;
    total->bytes += (uint64_t)read * read_bytes;
    for (int32_t t = 0; t < tile->count; t++) total->macs += least(first + t, window) * work->cache_macs;
  }
}

void smc_profile_count(struct smc_profiler *profiler, const struct smc_step *step) {
  profiler->tokens += (uint64_t)step->count;
  for (int32_t i = 0; i < profiler->program->task_count; i++) {
    const struct smc_task *task = &profiler->program->tasks[i];
    smc_profile_task *total = &profiler->tasks[i];
    count_work(total, &task->all, step->count);
    count_work(total, &task->wanted, task->head ? step->logits_count + step->argmax_count : step->wanted_count);
    if (!profiler->program->kv_group_count) continue;
    const struct smc_kv_shape *shape = &profiler->program->kv_groups[task->kv_group];
    total->bytes += (uint64_t)step->count * smc_kv_bytes(shape->head_dim_padded, step->kv_dtype, task->cache_writes);
    const int64_t window = shape->window ? shape->window : INT64_MAX;
    const uint64_t all_bytes = smc_kv_bytes(shape->head_dim_padded, step->kv_dtype, task->all.cache_reads);
    const uint64_t wanted_bytes = smc_kv_bytes(shape->head_dim_padded, step->kv_dtype, task->wanted.cache_reads);
    count_cache(total, &task->all, all_bytes, window, step->tiles, step->tile_count);
    count_cache(total, &task->wanted, wanted_bytes, window, step->wanted_tiles, step->wanted_tile_count);
  }
}

void smc_profile_stop(struct smc_profiler *profiler, smc_profile *profile) {
  settle(profiler);
  profiler->on = 0;
  const double second =
      profiler->ticks ? 1e-9 * (double)profiler->nanoseconds / (double)profiler->ticks : 0.0; /* a tick */
  *profile = (smc_profile){.size = sizeof *profile,
                           .threads = profiler->threads,
                           .task_count = profiler->program->task_count,
                           .steps = profiler->steps,
                           .tokens = profiler->tokens,
                           .tasks = profiler->tasks,
                           .seconds = 1e-9 * (double)profiler->nanoseconds};
  for (int32_t t = 0; t < profiler->threads; t++) {
    const struct smc_thread_profile *times = &profiler->times[t];
    profile->claim_seconds += second * (double)times->claim;
    profile->outside_seconds += second * (double)times->outside;
    for (int32_t i = 0; i < profile->task_count; i++) {
      smc_profile_task *task = &profiler->tasks[i];
      task->kernel_seconds += second * (double)times->tasks[i].kernel;
      task->wait_seconds += second * (double)times->tasks[i].wait;
      task->pieces += (uint64_t)times->tasks[i].pieces;
      if (t == 0) task->calls = (uint64_t)times->tasks[i].calls;
    }
  }
}
