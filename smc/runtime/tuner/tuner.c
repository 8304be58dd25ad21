/* Measures the candidates of kernels on this machine and writes a tuning record per line to standard output.
 *
 * Each call uses the next of many matrices, as many as a model has, so that weights come from the same place as in real
 * use: from memory, or from a cache that holds the whole model. Candidates alternate, time is this thread's CPU time,
 * and the median of the rounds counts: so neither a slow phase of the machine nor another process changes the
 * winner. */
#define _GNU_SOURCE
#include "tuner.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

int smc_cpu_missing(const char *features, char *missing, size_t size); /* the engine's cpu.c */
int32_t smc_prefetch_distance(void);

#define MIN_ROUNDS 3
#define MAX_ROUNDS 15
#define BATCH_NANOSECONDS 4e6 /* a measurement lasts at least this long, or one call */
#define HOPELESS 1.25 /* a candidate that is so much slower than the best after MIN_ROUNDS is not measured any more */
#define ALIGNMENT 64
#define SUMMED 16 /* the least number of columns of a sum of inputs */
#define HUGE_PAGE (2u << 20)
#define NAME_BYTES 128
#define PREFIX_BYTES 1024

static const char usage[] =
    "Usage: %s [OPTION]... > records.jsonl\n"
    "Measures kernels on this machine; on the computer that has smc, `smc tune --import records.jsonl` reads the "
    "result.\n"
    "\n"
    "  --seconds S    take about S seconds (default: until the medians are good)\n"
    "  --level NAME   only this feature level (default: all that the CPU has)\n"
    "  --resume FILE  skip measurements that FILE has already; use with >> FILE\n"
    "  --info         print the CPU's name, its levels and how much there is to measure, as JSON\n"
    "  --help         print this\n";

struct options {
  const char *level, *resume;
  double seconds; /* 0: no limit */
  int info;
};

/* ---- the machine */

/* The CPU's name in records: its maker and its design. */
static void cpu_name(char *name, size_t size) {
#if defined(__x86_64__)
  uint32_t a = 0, b = 0, c = 0, d = 0;
  char vendor[13] = "";
  __get_cpuid(0, &a, &b, &c, &d);
  memcpy(vendor, &b, 4), memcpy(vendor + 4, &d, 4), memcpy(vendor + 8, &c, 4);
  __get_cpuid(1, &a, &b, &c, &d);
  const uint32_t base = a >> 8 & 15, family = base == 15 ? base + (a >> 20 & 255) : base;
  const uint32_t model = (a >> 4 & 15) | (base == 6 || base == 15 ? (a >> 16 & 15) << 4 : 0);
  snprintf(name, size, "%s-%u-%u", vendor, family, model);
#elif defined(__aarch64__)
  const int readable = getauxval(AT_HWCAP) >> 11 & 1; /* HWCAP_CPUID: Linux reads the register for us */
  uint64_t id = 0;
  if (readable) __asm__("mrs %0, MIDR_EL1" : "=r"(id));
  snprintf(name, size, readable ? "arm-0x%02x-0x%03x" : "arm-unknown", (unsigned)(id >> 24 & 0xff),
           (unsigned)(id >> 4 & 0xfff));
#else
#error "the tuner knows x86-64 and 64-bit ARM under Linux"
#endif
}

static long read_number(const char *path) {
  long number = 0;
  FILE *file = fopen(path, "re");
  if (!file) return 0;
  if (fscanf(file, "%ld", &number) != 1) number = 0;
  fclose(file);
  return number;
}

/* If there are fast and slow cores, stay on the fastest, on which models run. Best effort. */
static void stay_on_fastest_cores(void) {
  cpu_set_t allowed, fastest;
  long best = 0;
  if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
  CPU_ZERO(&fastest);
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    char path[NAME_BYTES];
    if (!CPU_ISSET(cpu, &allowed)) continue;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cpufreq/cpuinfo_max_freq", cpu);
    const long frequency = read_number(path);
    if (frequency > best) CPU_ZERO(&fastest);
    if (frequency >= best) CPU_SET(cpu, &fastest);
    if (frequency > best) best = frequency;
  }
  (void)sched_setaffinity(0, sizeof fastest, &fastest);
}

static uint64_t available_memory(void) {
  char line[NAME_BYTES];
  unsigned long long kilobytes = 0;
  FILE *file = fopen("/proc/meminfo", "re");
  if (!file) return 256u << 20;
  while (fgets(line, sizeof line, file) && sscanf(line, "MemAvailable: %llu", &kilobytes) != 1) continue;
  fclose(file);
  return kilobytes ? kilobytes << 10 : 256u << 20;
}

static double now(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* ---- memory */

static void *allocate(uint64_t bytes) {
  const uint64_t size = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  uint8_t *region = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (region == MAP_FAILED) {
    fprintf(stderr, "there is no memory for %llu bytes of weights\n", (unsigned long long)bytes);
    exit(2);
  }
  region += -(uintptr_t)region % HUGE_PAGE;
  (void)madvise(region, size, MADV_HUGEPAGE); /* as the engine has its weights */
  return region;
}

/* Random words: these bits, and any of the others. */
static void fill(void *memory, uint64_t bytes, uint16_t bits, uint16_t others) {
  uint16_t *words = memory;
  uint64_t state = 0x9e3779b97f4a7c15;
  for (uint64_t i = 0; i < bytes / 2; i++) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    words[i] = (uint16_t)(bits | (state & others));
  }
}

/* Words for every role but one: as codes and integers they are arbitrary; as f16, bf16 or f32 they are normal numbers
 * of both signs, whose products are normal too, because subnormal ones would take longer. */
static void fill_numbers(void *memory, uint64_t bytes) { fill(memory, bytes, 0x2c00, 0x83ff); }

/* The other role: zeros are codes of weights, of 2 bits and more, two of 4 bits or one in a byte. */
static void fill_zeros(void *memory, uint64_t bytes) { fill(memory, bytes, 0, 0x1111); }

/* int8 inputs: whatever the order of fours of columns, the sums that a kernel is given are those of the codes. */
static void fill_codes(int8_t *codes, uint64_t bytes) {
  fill(codes, bytes, 0, 0x3f3f);
  for (uint64_t i = 0; i < bytes; i += 4) codes[i + 1] = (int8_t)(1 - codes[i]), codes[i + 3] = (int8_t)-codes[i + 2];
}

struct memory {
  uint8_t *weights, *out, *expected;
  void *numbers; /* floats: inputs, or the scales of inputs */
  int8_t *codes; /* inputs */
  int32_t *sums; /* of codes */
  uint64_t weight_bytes, sum_count;
  const struct tuner_workload *zeros_of; /* whose zeros there are among the weights */
};

static uint64_t largest(uint64_t a, uint64_t b) { return a > b ? a : b; }

static struct memory allocate_all(void) {
  uint64_t matrix = 0, inputs = 0, out = 0;
  for (int32_t k = 0; k < tuner_kernel_count; k++)
    for (int32_t i = 0; i < tuner_kernels[k].workload_count; i++) {
      const struct tuner_workload *w = &tuner_kernels[k].workloads[i];
      matrix = largest(matrix, w->bytes);
      inputs = largest(inputs, (uint64_t)w->tokens * w->x_stride);
      out = largest(out, (uint64_t)w->tokens * w->padded_rows * sizeof(float));
    }
  const uint64_t limit = available_memory() / 4;
  struct memory m = {.weight_bytes = largest(matrix, tuner_weight_bytes < limit ? tuner_weight_bytes : limit)};
  m.sum_count = inputs / SUMMED;
  m.weights = allocate(m.weight_bytes);
  m.numbers = allocate(inputs * sizeof(float));
  m.codes = allocate(inputs);
  m.sums = allocate(m.sum_count * sizeof *m.sums);
  m.out = allocate(out);
  m.expected = allocate(out);
  fill_numbers(m.weights, m.weight_bytes);
  fill_numbers(m.numbers, inputs * sizeof(float));
  fill_codes(m.codes, inputs);
  return m;
}

/* What lies behind the scales of every matrix of a workload. */
static void fill_ends(const struct memory *m, const struct tuner_workload *w,
                      void (*words)(void *memory, uint64_t bytes)) {
  for (uint64_t end = w->bytes; end <= m->weight_bytes; end += w->bytes)
    words(m->weights + end - (w->bytes - w->zeros_offset), w->bytes - w->zeros_offset);
}

/* Zeros and sums as a workload has them. */
static void prepare(struct memory *m, const struct tuner_kernel *k, const struct tuner_workload *w) {
  if (m->zeros_of) fill_ends(m, m->zeros_of, fill_numbers);
  fill_ends(m, w, fill_zeros);
  m->zeros_of = w;
  for (uint64_t i = 0; i < m->sum_count; i++) m->sums[i] = k->input_sum;
}

/* ---- measuring */

static uint64_t turn; /* of calls: which matrix is next */
static int32_t prefetch_distance;

static void call(const struct memory *m, const struct tuner_kernel *k, const struct tuner_workload *w,
                 int32_t candidate, uint64_t matrix) {
  const uint8_t *codes = m->weights + matrix * w->bytes;
  const void *x = k->input_sum ? (const void *)m->codes : m->numbers;
  k->candidates[candidate].linear(x, m->numbers, m->sums, codes, codes + w->scales_offset, codes + w->zeros_offset,
                                  m->numbers, m->out, w->tokens, w->columns, w->x_stride, w->padded_rows, 0,
                                  prefetch_distance, 0, w->padded_rows / 32);
}

/* Nanoseconds of one call, of so many. */
static double timed(const struct memory *m, const struct tuner_kernel *k, const struct tuner_workload *w,
                    int32_t candidate, int64_t calls) {
  const uint64_t matrices = m->weight_bytes / w->bytes;
  const double begin = now(CLOCK_THREAD_CPUTIME_ID);
  for (int64_t i = 0; i < calls; i++) call(m, k, w, candidate, turn++ % matrices);
  return (now(CLOCK_THREAD_CPUTIME_ID) - begin) / (double)calls;
}

static int compare(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(const double *values, int count) {
  double sorted[MAX_ROUNDS];
  memcpy(sorted, values, count * sizeof *values);
  qsort(sorted, count, sizeof *sorted, compare);
  return count % 2 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
}

struct timing {
  double rounds[MAX_ROUNDS];
  int count, dropped;
};

/* Candidates whose results differ from the default's are dropped at once. Returns how many. */
static int drop_wrong(const struct memory *m, const struct tuner_kernel *k, const struct tuner_workload *w,
                      struct timing *timings) {
  const uint64_t bytes = (uint64_t)w->tokens * w->padded_rows * sizeof(float);
  int wrong = 0;
  for (int32_t c = 0; c < k->candidate_count; c++) {
    memset(m->out, 0xff, bytes);
    call(m, k, w, c, 0);
    if (c == 0) memcpy(m->expected, m->out, bytes);
    timings[c].dropped = memcmp(m->expected, m->out, bytes) != 0;
    if (!timings[c].dropped) continue;
    fprintf(stderr, "%s of %s on %s computes other results than %s: this is a bug in smc\n", k->candidates[c].name,
            k->name, k->level, k->candidates[0].name);
    wrong++;
  }
  return wrong;
}

static void drop_hopeless(struct timing *timings, int count) {
  double best = 0;
  for (int c = 0; c < count; c++) {
    const double time = timings[c].count ? median(timings[c].rounds, timings[c].count) : 0;
    if (time > 0 && (!best || time < best)) best = time;
  }
  for (int c = 1; c < count; c++)
    if (timings[c].count && median(timings[c].rounds, timings[c].count) > HOPELESS * best) timings[c].dropped = 1;
}

/* Measures rounds until `deadline` on the monotonic clock, or until there are enough. */
static void take_rounds(const struct memory *m, const struct tuner_kernel *k, const struct tuner_workload *w,
                        struct timing *timings, double deadline) {
  const double one = timed(m, k, w, 0, 1);
  const int64_t calls = one >= BATCH_NANOSECONDS ? 1 : (int64_t)(BATCH_NANOSECONDS / (one > 1 ? one : 1)) + 1;
  for (int round = 0; round < MAX_ROUNDS; round++) {
    if (round >= MIN_ROUNDS && deadline && now(CLOCK_MONOTONIC) > deadline) break;
    if (round == MIN_ROUNDS) drop_hopeless(timings, k->candidate_count);
    for (int32_t i = 0; i < k->candidate_count; i++) {
      const int32_t c = (i + round) % k->candidate_count;
      if (!timings[c].dropped) timings[c].rounds[timings[c].count++] = timed(m, k, w, c, calls);
    }
  }
}

/* ---- records */

/* The beginning of a record: what was measured. */
static void write_prefix(char *text, const char *cpu, const struct tuner_kernel *k, const struct tuner_workload *w) {
  snprintf(text, PREFIX_BYTES,
           "{\"version\": 1, \"cpu\": \"%s\", \"level\": \"%s\", \"kernel\": \"%s\", "
           "\"workload\": {\"rows\": %d, \"columns\": %d, \"tokens\": %d}, \"nanoseconds\": {",
           cpu, k->level, k->name, w->rows, w->columns, w->tokens);
}

static void print_record(const char *prefix, const struct tuner_kernel *k, const struct timing *timings) {
  const char *comma = "";
  fputs(prefix, stdout);
  for (int32_t c = 0; c < k->candidate_count; c++) {
    if (!timings[c].count) continue;
    const double time = median(timings[c].rounds, timings[c].count);
    printf("%s\"%s\": %.0f", comma, k->candidates[c].name, time < 1 ? 1 : time);
    comma = ", ";
  }
  puts("}}");
  if (!fflush(stdout)) return;
  fprintf(stderr, "can't write the record: %s\n", strerror(errno));
  exit(2);
}

static char *read_file(const char *path) {
  FILE *file = fopen(path, "re");
  char *text = NULL;
  size_t used = 0, got;
  if (!file && errno == ENOENT) return calloc(1, 1); /* nothing yet to resume */
  do {
    text = file ? realloc(text, used + (1 << 16) + 1) : NULL;
    if (!text) break;
    used += got = fread(text + used, 1, 1 << 16, file);
  } while (got);
  if (!text || ferror(file)) {
    fprintf(stderr, "can't read %s: %s\n", path, strerror(errno));
    exit(2);
  }
  text[used] = 0;
  fclose(file);
  return text;
}

/* ---- the whole */

static int wanted(const struct options *options, const struct tuner_kernel *k) {
  char missing[PREFIX_BYTES] = "";
  return (!options->level || !strcmp(options->level, k->level)) &&
         !smc_cpu_missing(k->features, missing, sizeof missing);
}

/* How many workloads there are to measure; with `measure`, measures them. */
static int go_through(const struct options *options, const char *cpu, const char *done, struct memory *measure,
                      int total, int *wrong) {
  const double began = now(CLOCK_MONOTONIC);
  int count = 0;
  for (int32_t i = 0; i < tuner_kernel_count; i++) {
    const struct tuner_kernel *k = &tuner_kernels[i];
    if (!wanted(options, k)) continue;
    struct timing *timings = calloc(k->candidate_count, sizeof *timings);
    if (!timings) exit(2);
    for (int32_t j = 0; j < k->workload_count; j++) {
      const struct tuner_workload *w = &k->workloads[j];
      char prefix[PREFIX_BYTES];
      write_prefix(prefix, cpu, k, w);
      if (strstr(done, prefix)) continue;
      count++;
      if (!measure) continue;
      char left[64] = "";
      if (count > 1)
        snprintf(left, sizeof left, ", about %.0f s left",
                 (now(CLOCK_MONOTONIC) - began) * 1e-9 * (total - count + 1) / (count - 1));
      fprintf(stderr, "%d/%d (%d %%%s)  %s  %s  %d x %d, %d tokens\n", count, total, (int)(100LL * (count - 1) / total),
              left, k->level, k->name, w->rows, w->columns, w->tokens);
      memset(timings, 0, k->candidate_count * sizeof *timings);
      prepare(measure, k, w);
      *wrong += drop_wrong(measure, k, w, timings);
      take_rounds(measure, k, w, timings, options->seconds ? began + options->seconds * 1e9 * count / total : 0);
      print_record(prefix, k, timings);
    }
    free(timings);
  }
  return count;
}

static void print_info(const struct options *options, const char *cpu, int total) {
  const char *comma = "", *last = "";
  printf("{\"cpu\": \"%s\", \"levels\": [", cpu);
  for (int32_t i = 0; i < tuner_kernel_count; i++) { /* kernels come level by level */
    if (!wanted(options, &tuner_kernels[i]) || !strcmp(last, tuner_kernels[i].level)) continue;
    last = tuner_kernels[i].level;
    printf("%s\"%s\"", comma, last);
    comma = ", ";
  }
  printf("], \"measurements\": %d}\n", total);
}

static struct options read_options(int count, char **arguments) {
  struct options options = {0};
  for (int i = 1; i < count; i++) {
    const char *name = arguments[i], *value = i + 1 < count ? arguments[i + 1] : NULL;
    char *end = NULL;
    if (!strcmp(name, "--help") || !strcmp(name, "-h")) {
      printf(usage, arguments[0]);
      exit(0);
    }
    if (!strcmp(name, "--info")) options.info = 1;
    else if (value && !strcmp(name, "--level")) options.level = value, i++;
    else if (value && !strcmp(name, "--resume")) options.resume = value, i++;
    else if (value && !strcmp(name, "--seconds") && (options.seconds = strtod(value, &end)) > 0 &&
             options.seconds < 1e9 && !*end)
      i++;
    else {
      fprintf(stderr, "%s: '%s' is not an option, or its value is missing: --help lists the options\n", arguments[0],
              name);
      exit(2);
    }
  }
  return options;
}

int main(int count, char **arguments) {
  const struct options options = read_options(count, arguments);
  char cpu[NAME_BYTES];
  int wrong = 0;
  stay_on_fastest_cores();
  prefetch_distance = smc_prefetch_distance();
  cpu_name(cpu, sizeof cpu);
  const char *done = options.resume ? read_file(options.resume) : "";
  const int total = go_through(&options, cpu, done, NULL, 0, &wrong);
  if (options.info) {
    print_info(&options, cpu, total);
    return 0;
  }
  if (!total && !*done) {
    fprintf(stderr, "there is nothing to measure: this CPU (%s) has no level of this program%s%s\n", cpu,
            options.level ? " by the name of " : "", options.level ? options.level : "");
    return 2;
  }
  if (total) {
    struct memory memory = allocate_all();
    go_through(&options, cpu, done, &memory, total, &wrong);
  }
  return wrong ? 1 : 0;
}
