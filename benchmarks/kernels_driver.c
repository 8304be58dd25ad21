/* Runs matmul kernels again and again for benchmarks.kernels, which loads it as a library: times them and counts their
 * instructions. */
#define _GNU_SOURCE
#include "tuner.h"

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A product with one packed matrix after the other of `matrices`, for the row blocks begin…end. */
struct product {
  tuner_linear *linear;
  const void *x, *x_scales, *x_sums;
  const uint8_t *weights;
  void *out;
  struct tuner_workload workload; /* its `bytes` is how far one matrix is from the next */
  int32_t matrices, begin, end, prefetch_distance;
};

int32_t smc_prefetch_distance(void); /* the engine's cpu.c */

static void multiply(const struct product *p, int64_t matrix) {
  const struct tuner_workload *w = &p->workload;
  const uint8_t *codes = p->weights + (uint64_t)matrix * w->bytes;
  p->linear(p->x, p->x_scales, p->x_sums, codes, codes + w->scales_offset, codes + w->zeros_offset, p->x, p->out,
            w->tokens, w->columns, w->x_stride, w->padded_rows, 0, p->prefetch_distance, p->begin, p->end);
}

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Nanoseconds of so many products. */
int64_t time_products(const struct product *p, int64_t calls) {
  const int64_t begin = now();
  for (int64_t i = 0; i < calls; i++) multiply(p, i % p->matrices);
  return now() - begin;
}

/* Instructions of one product: a child process goes through it in single steps. -1 where that is not permitted. */
int64_t count_instructions(const struct product *p) {
  const pid_t child = fork();
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, 0, 0)) _exit(1);
    raise(SIGSTOP);
    multiply(p, 0);
    raise(SIGSTOP);
    _exit(0);
  }
  int64_t count = -1;
  int status = 0;
  waitpid(child, &status, 0);
  while (WIFSTOPPED(status)) {
    count++;
    if (ptrace(PTRACE_SINGLESTEP, child, 0, 0)) break;
    waitpid(child, &status, 0);
    if (WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP) break;
  }
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  return count;
}
