/* How many threads a pool has by default, and on which CPUs its workers run.
 *
 * The caller's affinity is never changed. But Linux may leave the caller and a worker on one CPU for a whole run
 * while another idles (waiting with sched_yield hides the imbalance), which costs all the speed-up. So workers keep off
 * the CPU on which the caller runs, and where there is a CPU for every thread and no more, each worker has its own.
 *
 * If some CPUs are much slower than others (big.LITTLE), only the fast ones are used: else all would wait at the end of
 * a phase for a slow one's piece. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int limit_threads(int count) { return count < 1 ? 1 : count > SMC_MAX_THREADS ? SMC_MAX_THREADS : count; }

#if defined(__linux__)
#include <sys/syscall.h>

#define PATH_BYTES 4096

/* The quota of one cgroup directory in CPUs, rounded up, or 0. */
static int directory_quota(const char *directory, int version) {
  char path[PATH_BYTES + 32], line[128];
  long long quota = 0, period = 0;
  if (version == 2) { /* "max 100000" or "150000 100000" */
    snprintf(path, sizeof path, "%s/cpu.max", directory);
    if (!smc_read_line(path, line, sizeof line) || sscanf(line, "%lld %lld", &quota, &period) != 2) return 0;
  } else {
    snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", directory);
    if (!smc_read_line(path, line, sizeof line) || sscanf(line, "%lld", &quota) != 1) return 0;
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", directory);
    if (!smc_read_line(path, line, sizeof line) || sscanf(line, "%lld", &period) != 1) return 0;
  }
  if (quota <= 0 || period <= 0 || quota / period > 1 << 20) return 0;
  return (int)((quota + period - 1) / period);
}

static void visit_quota(void *context, const char *directory, int version) {
  int *best = context;
  const int quota = directory_quota(directory, version);
  if (quota && (!*best || quota < *best)) *best = quota;
}

int smc_quota_cpus(const char *membership, const char *root) {
  int best = 0;
  smc_cgroup_levels(membership, root, "cpu", visit_quota, &best);
  return best;
}

void smc_keep_fast_cpus(const char *root, cpu_set_t *cpus) {
  char path[PATH_BYTES], line[32];
  long capacity[CPU_SETSIZE], most = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, cpus)) continue;
    snprintf(path, sizeof path, "%s/cpu%d/cpu_capacity", root, cpu);
    if (!smc_read_line(path, line, sizeof line) || sscanf(line, "%ld", &capacity[cpu]) != 1) return;
    if (capacity[cpu] > most) most = capacity[cpu];
  }
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, cpus) && capacity[cpu] < most / 2) CPU_CLR(cpu, cpus);
}

/* The number of CPUs that this thread may use; only the fast ones if there are at least `wanted` of them. 0 if
 * unknown. */
static int usable_cpus(cpu_set_t *cpus, int wanted) {
  if (sched_getaffinity(0, sizeof *cpus, cpus)) return 0;
  cpu_set_t fast = *cpus;
  smc_keep_fast_cpus("/sys/devices/system/cpu", &fast);
  if (CPU_COUNT(&fast) >= wanted) *cpus = fast;
  return CPU_COUNT(cpus);
}

int smc_default_threads(void) {
  cpu_set_t cpus;
  const int count = usable_cpus(&cpus, 1), quota = smc_quota_cpus("/proc/self/cgroup", "/sys/fs/cgroup");
  return limit_threads(quota && quota < count ? quota : count);
}

int smc_thread_id(void) { return (int)syscall(SYS_gettid); }

/* Best effort: a worker that can't be moved works where it is. */
static void restrict_worker(const struct smc_worker *worker, const cpu_set_t *cpus) {
  (void)sched_setaffinity(atomic_load(&worker->id), sizeof *cpus, cpus);
}

static void pin_worker(struct smc_worker *worker, int cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  worker->cpu = cpu;
  restrict_worker(worker, &one);
}

/* With more CPUs than threads, the scheduler knows best which are fast and which share a core. */
static void keep_off(struct smc_pool *pool, int cpu) {
  cpu_set_t others = pool->allowed;
  CPU_CLR(cpu, &others);
  for (int t = 1; t < pool->threads; t++) restrict_worker(&pool->workers[t], &others);
}

/* A CPU of the pool's on which neither the caller nor a worker is; there is one where each worker has its own. */
static int spare_cpu(const struct smc_pool *pool, int caller) {
  cpu_set_t spare = pool->allowed;
  CPU_CLR(caller, &spare);
  for (int t = 1; t < pool->threads; t++)
    if (pool->workers[t].cpu >= 0) CPU_CLR(pool->workers[t].cpu, &spare);
  int cpu = 0;
  while (!CPU_ISSET(cpu, &spare)) cpu++;
  return cpu;
}

void smc_place_workers(struct smc_pool *pool) {
  const char *pin = getenv("SMC_PIN");
  const int caller = sched_getcpu();
  if (pool->threads == 1 || (pin && !strcmp(pin, "0")) || caller < 0 || caller >= CPU_SETSIZE) return;
  if (usable_cpus(&pool->allowed, pool->threads) < pool->threads) return;
  pool->placing = 1;
  pool->caller_cpu = caller;
  if (CPU_COUNT(&pool->allowed) > pool->threads) {
    keep_off(pool, caller);
    return;
  }
  for (int t = 1; t < pool->threads; t++) pin_worker(&pool->workers[t], spare_cpu(pool, caller));
}

void smc_follow_caller(struct smc_pool *pool) {
  const int cpu = pool->placing ? sched_getcpu() : -1;
  if (cpu < 0 || cpu >= CPU_SETSIZE || cpu == pool->caller_cpu || !CPU_ISSET(cpu, &pool->allowed)) return;
  pool->caller_cpu = cpu;
  if (CPU_COUNT(&pool->allowed) > pool->threads) {
    keep_off(pool, cpu);
    return;
  }
  for (int t = 1; t < pool->threads; t++)
    if (pool->workers[t].cpu == cpu) pin_worker(&pool->workers[t], spare_cpu(pool, cpu));
}

#else /* macOS: threads can't be placed; the system has the busy ones on its performance cores */
#include <sys/sysctl.h>

int smc_default_threads(void) {
  int count = 0;
  size_t size = sizeof count;
  if (sysctlbyname("hw.perflevel0.logicalcpu", &count, &size, NULL, 0)) count = (int)sysconf(_SC_NPROCESSORS_ONLN);
  return limit_threads(count);
}

int smc_thread_id(void) { return 1; }

void smc_place_workers(struct smc_pool *pool) { (void)pool; }

void smc_follow_caller(struct smc_pool *pool) { (void)pool; }
#endif
