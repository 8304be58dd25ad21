/* The limits of the machine: reading memory, and multiply-adds in registers. Rooflines use them.
 * (S. Williams, A. Waterman, D. Patterson: Roofline. Communications of the ACM 52(4), 2009.) */
#include "../internal.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define BUFFER_BYTES (UINT64_C(256) << 20) /* no CPU caches as much for a few cores */
#define HUGE_PAGE (2u << 20)
#define RUN_NANOSECONDS 2000000 /* a run takes at least this long, so that starting the threads does not count */
#define RUNS 30                 /* the best run counts: during the others, another program used the machine */

/* Work that every thread repeats by itself, on its part of the data. */
struct work {
  void (*run)(const struct work *work, int32_t part);
  int32_t parts;
  int64_t repeats;
  const uint8_t *data;
  uint64_t bytes;
  int32_t ahead; /* so many bytes before its use memory is prefetched, as matmuls do; 0: not */
  void (*loop)(int64_t repeats);
};

/* ---- memory */

typedef uint64_t vector __attribute__((vector_size(64)));

static void read_part(const struct work *work, int32_t part) {
  const uint64_t vectors = work->bytes / (4 * sizeof(vector)) / (uint64_t)work->parts * 4;
  const vector *data = (const vector *)(const void *)work->data + (uint64_t)part * vectors;
  vector sums[4] = {{0}};
  for (int64_t i = 0; i < work->repeats; i++) {
    for (uint64_t v = 0; v < vectors; v += 4) {
      if (work->ahead)
        for (int j = 0; j < 4; j++) __builtin_prefetch((const char *)&data[v + (uint64_t)j] + work->ahead, 0, 2);
      for (int j = 0; j < 4; j++) sums[j] += data[v + (uint64_t)j];
    }
    __asm__ __volatile__("" ::: "memory"); /* read it again */
  }
  const vector sum = sums[0] + sums[1] + sums[2] + sums[3];
  __asm__ __volatile__("" ::"r"(sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7]));
}

/* ---- arithmetic: enough independent chains of one instruction to hide its latency */

struct peak {
  const char *feature; /* of the level */
  void (*loop)(int64_t repeats);
  int32_t macs; /* multiply-adds of a repeat */
};

#if defined(__aarch64__)
#define CHAINS 24
#else
#define CHAINS 12
#endif

/* A function that repeats `step`, an expression of sums[i], a and b, in registers of the constraint's class. */
#define PEAK(name, features, type, constraint, step)                                                                   \
  __attribute__((target(features))) static void name(int64_t repeats) {                                                \
    type sums[CHAINS], a, b;                                                                                           \
    memset(sums, 0, sizeof sums);                                                                                      \
    memset(&a, 0, sizeof a);                                                                                           \
    memset(&b, 0, sizeof b);                                                                                           \
    for (; repeats > 0; repeats--) _Pragma("GCC unroll 24") for (int i = 0; i < CHAINS; i++) {                         \
        __asm__ __volatile__("" : "+" constraint(a), "+" constraint(b)); /* may have changed */                        \
        sums[i] = (step);                                                                                              \
      }                                                                                                                \
    for (int i = 0; i < CHAINS; i++) __asm__ __volatile__("" ::constraint(sums[i]));                                   \
  }

#if defined(__x86_64__)
PEAK(vpdpbusd_512, "avx512f,avx512vnni", __m512i, "v", _mm512_dpbusd_epi32(sums[i], a, b))
PEAK(vpdpbusd_256, "avx2,avxvnni", __m256i, "x", _mm256_dpbusd_avx_epi32(sums[i], a, b))
/* Products of small codes are summed in int16, and these sums are rarely widened. */
PEAK(vpmaddubsw, "avx2", __m256i, "x", _mm256_add_epi16(sums[i], _mm256_maddubs_epi16(a, b)))
PEAK(vfmadd_512, "avx512f", __m512, "v", _mm512_fmadd_ps(a, b, sums[i]))
PEAK(vfmadd_256, "avx2,fma", __m256, "x", _mm256_fmadd_ps(a, b, sums[i]))
static const struct peak i8_peaks[] = {{"avx512vnni", vpdpbusd_512, 64 * CHAINS},
                                       {"avxvnni", vpdpbusd_256, 32 * CHAINS},
                                       {"avx2", vpmaddubsw, 32 * CHAINS},
                                       {0}};
static const struct peak f32_peaks[] = {{"avx512f", vfmadd_512, 16 * CHAINS}, {"fma", vfmadd_256, 8 * CHAINS}, {0}};
#elif defined(__aarch64__)
PEAK(smmla, "i8mm", int32x4_t, "w", vmmlaq_s32(sums[i], vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)))
PEAK(sdot, "dotprod", int32x4_t, "w", vdotq_s32(sums[i], vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)))
PEAK(smull, "neon", int32x4_t, "w",
     vpadalq_s16(sums[i],
                 vmlal_high_s8(vmull_s8(vget_low_s8(vreinterpretq_s8_s32(a)), vget_low_s8(vreinterpretq_s8_s32(b))),
                               vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b))))
PEAK(fmla, "neon", float32x4_t, "w", vfmaq_f32(sums[i], a, b))
static const struct peak i8_peaks[] = {
    {"i8mm", smmla, 32 * CHAINS}, {"dotprod", sdot, 16 * CHAINS}, {"neon", smull, 16 * CHAINS}, {0}};
static const struct peak f32_peaks[] = {{"neon", fmla, 4 * CHAINS}, {0}};
#else
static const struct peak i8_peaks[] = {{0}}, f32_peaks[] = {{0}};
#endif

static void multiply_part(const struct work *work, int32_t part) {
  (void)part;
  work->loop(work->repeats);
}

/* ---- measuring */

static void run_parts(struct smc_thread *thread, const struct smc_step *step) {
  const struct work *work = step->kernels; /* sure inside a block only */
  const int32_t parts = step->count;
  struct smc_phase phase;
  smc_phase_begin(thread, &phase, 0, 1, &parts);
  while (thread->index < parts && smc_phase_claim(thread, &phase))
    for (int32_t part = phase.begin; part < phase.end; part++) work->run(work, part);
  smc_phase_end(thread, &phase);
}

static int64_t run_once(struct smc_pool *pool, const struct work *work) {
  static const _Atomic uint32_t never;
  static uint8_t scratch[1]; /* not used */
  const struct smc_job job = {
      .run = run_parts, .step = {.count = work->parts, .kernels = work}, .scratch = scratch, .cancels = &never};
  const int64_t start = smc_nanoseconds();
  smc_pool_run(pool, &job);
  return smc_nanoseconds() - start;
}

static int64_t best_time(struct smc_pool *pool, const struct work *work, int runs) {
  int64_t best = INT64_MAX;
  while (runs-- > 0) {
    const int64_t time = run_once(pool, work);
    if (time < best) best = time;
  }
  return best;
}

/* Repeats a second, of all threads together. */
static double best_rate(struct smc_pool *pool, struct work *work) {
  for (work->repeats = 1; best_time(pool, work, 3) < RUN_NANOSECONDS; work->repeats *= 2) continue;
  return 1e9 * (double)work->repeats * (double)work->parts / (double)best_time(pool, work, RUNS);
}

static double read_rate(struct smc_pool *pool, int32_t threads, const void *data, uint64_t bytes) {
  struct work work = {
      .run = read_part, .parts = threads, .data = data, .bytes = bytes, .ahead = smc_prefetch_distance()};
  const uint64_t part = bytes / (4 * sizeof(vector)) / (uint64_t)threads * 4 * sizeof(vector);
  return part ? best_rate(pool, &work) * (double)part : 0.0;
}

static int has_feature(const struct smc_level *level, const char *feature) {
  const size_t length = strlen(feature);
  for (const char *name = level->features; *name; name += strcspn(name, ","), name += *name == ',')
    if (!strncmp(name, feature, length) && (name[length] == ',' || !name[length])) return 1;
  return 0;
}

static double multiply_rate(struct smc_pool *pool, int32_t threads, const struct smc_level *level,
                            const struct peak *peak) {
  while (peak->feature && !has_feature(level, peak->feature)) peak++;
  struct work work = {.run = multiply_part, .parts = threads, .loop = peak->loop};
  return peak->feature ? best_rate(pool, &work) * peak->macs : 0.0;
}

int smc_measure_limits(struct smc_pool *pool, const struct smc_level *level, const void *weights, uint64_t weight_bytes,
                       smc_limits *limits) {
  const uint64_t free_bytes = smc_available_memory(4 * BUFFER_BYTES) / 4,
                 bytes = free_bytes < BUFFER_BYTES ? free_bytes : BUFFER_BYTES;
  void *buffer;
  if (posix_memalign(&buffer, HUGE_PAGE, bytes)) return SMC_NO_MEMORY;
  smc_advise_huge_pages(buffer, bytes); /* as the weights have them */
  memset(buffer, 1, bytes);             /* pages that were never written are all the same one */
  const int32_t threads = limits->threads;
  limits->memory_bytes = read_rate(pool, threads, buffer, bytes);
  free(buffer);
  limits->weights_bytes = read_rate(pool, threads, weights, weight_bytes);
  limits->i8_macs = multiply_rate(pool, threads, level, i8_peaks);
  limits->f32_macs = multiply_rate(pool, threads, level, f32_peaks);
  return SMC_OK;
}
