/* Phases on a GPU: the grid's blocks are what the engine's program.h calls threads. Each takes every so many of a phase's
 * blocks; at the end of a phase all of them wait for each other, or the launch ends. */

/* One per launch; device memory. */
struct smc_control {
  uint32_t arrived;         /* at barriers, all blocks together */
  uint32_t stop_at;         /* the number of the barrier behind which all leave; UINT32_MAX: none */
  uint32_t failure;         /* becomes 1 if a block has waited too long */
  uint32_t phases;          /* how many the step has, once it ran */
  uint32_t resident;        /* one launch does all phases */
  uint32_t cancels_seen;    /* the step ends where … */
  const uint32_t *cancels;  /* … this, memory of the host, is something else */
  uint64_t patience;        /* nanoseconds that a block waits at a barrier */
  uint32_t tasks;           /* of the launch's last phase: the first one's number in the engine's tables, 65536 times how many */
};

#define SMC_SOON 1000000 /* nanoseconds that a block waits before it checks whether another one has given up */

struct smc_thread {
  int32_t index, count;
  uint8_t *scratch; /* shared memory: what the program keeps there, behind it what kernels need */
  struct smc_control *control;
  uint32_t phase, first, last; /* phases that are done in this launch: first … last - 1 */
  uint32_t tasks;              /* of the last phase that has begun */
};

struct smc_phase {
  int32_t task, begin, end;
  int32_t next, total, task_count;
  const int32_t *blocks;
};

/* A value under a name, computed wherever it is used: a function with many buffers has too few registers to keep them
 * across the calls of its kernels. */
template <class Make, class Value = decltype(((Make *)0)->operator()())> struct smc_name {
  Make make;
  SMC_DEVICE_MEMBER operator Value() const { return make(); }
};
template <class Make> smc_name(Make) -> smc_name<Make>;

SMC_DEVICE void smc_phase_begin(struct smc_thread *thread, struct smc_phase *phase, int32_t first_task, int32_t task_count,
                                const int32_t *blocks) {
  const int done_here = thread->phase >= thread->first && thread->phase < thread->last;
  phase->next = smc_first_block(thread->index, thread->count, thread->phase);
  phase->task_count = task_count;
  thread->tasks = (uint32_t)(first_task + 65536 * task_count);
  phase->blocks = blocks;
  phase->total = 0;
  for (int32_t task = 0; done_here && task < task_count; task++) phase->total += blocks[task];
  thread->phase++;
}

/* The next block, the same for all threads of a CUDA block. They wait for each other here, so that kernels need not
 * wait at their end: shared memory of the last block is no longer in use. */
SMC_DEVICE int smc_phase_claim(struct smc_thread *thread, struct smc_phase *phase) {
  int32_t block = phase->next;
  smc_sync();
  if (block >= phase->total) return 0;
  phase->next += thread->count;
  phase->task = 0;
  while (block >= phase->blocks[phase->task]) block -= phase->blocks[phase->task++];
  phase->begin = block;
  phase->end = block + 1;
  return 1;
}

/* A block arrives at the grid's barrier number `phase` and waits for all others; not 0 if the step ends here. The
 * block's own threads have waited for each other in the claim that found no block. */
SMC_KERNEL int smc_wait_for_all(struct smc_control *control, uint32_t phase) {
  const uint32_t target = phase * (uint32_t)smc_block_count();
  int stop = 0;
  if (smc_lane_of_block() == 0) {
    smc_arrive(&control->arrived);
    const uint64_t start = smc_nanoseconds();
    while (smc_look(&control->arrived) < target) {
      smc_wait();
      const uint64_t waited = smc_nanoseconds() - start;
      if (waited > SMC_SOON && (smc_look(&control->failure) || waited > control->patience)) {
        smc_tell(&control->failure, 1u);
        stop = 1;
        break;
      }
    }
    if (smc_look(&control->stop_at) <= phase) stop = 1;
  }
  return smc_sync_any(stop);
}

/* Not 0 if the step ends here. */
SMC_DEVICE int smc_phase_end(struct smc_thread *thread, struct smc_phase *phase) {
  (void)phase;
  if (thread->control->resident) return smc_wait_for_all(thread->control, thread->phase);
  return thread->phase > thread->last - 1u; /* never where last is 0: phases are only counted */
}

/* Once per layer: makes the host's cancel() take effect, at the next barrier, for all blocks at the same one. */
SMC_DEVICE int smc_cancelled(struct smc_thread *thread) {
  struct smc_control *control = thread->control;
  if (control->resident && thread->index == 0 && smc_lane_of_block() == 0 && smc_look_at_host(control->cancels) != control->cancels_seen)
    smc_tell(&control->stop_at, thread->phase + 1);
  return 0;
}

SMC_DEVICE int32_t smc_piece_tokens(const struct smc_thread *thread, int32_t tokens) { return tokens; }

/* Rows of floats that move, by all threads of a block: each has columns of its own. */
SMC_KERNEL void smc_move_row(float *to, const float *from, int32_t width) {
  for (int32_t column = smc_lane_of_block(); column < width; column += SMC_THREADS) to[column] = from[column];
}

/* The largest logits that a block of the grid has found: none yet. */
SMC_KERNEL void smc_clear_argmaxes(const struct smc_step *step, int32_t index) {
  for (int32_t i = smc_lane_of_block(); i < step->argmax_count * SMC_ARGMAX_LANES; i += SMC_THREADS) {
    struct smc_argmax *argmax = step->argmaxes + index * step->argmax_count + i / SMC_ARGMAX_LANES;
    argmax->logits[i % SMC_ARGMAX_LANES] = smc_float_of_bits(0xff800000u);
    argmax->ids[i % SMC_ARGMAX_LANES] = 0x7fffffff;
  }
}
