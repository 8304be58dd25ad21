/* What this CPU has and likes: its features, under LLVM's names, which the kernels were compiled with. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FARTHEST (1 << 20) /* bytes that SMC_PREFETCH may say */

#if defined(__x86_64__)
#include <cpuid.h>

#define INTEL_DISTANCE (12 << 10)

/* A Xeon with AMX decodes half as fast again with prefetches, from 8 KiB ahead on. Zen 4 reads a stream fastest by
 * itself, and a third slower with them (python -m benchmarks.streams). */
static int32_t usual_distance(void) {
  uint32_t a, b, c, d;
  const int known = __get_cpuid(0, &a, &b, &c, &d);
  const int intel = known && b == signature_INTEL_ebx && c == signature_INTEL_ecx && d == signature_INTEL_edx;
  return intel ? INTEL_DISTANCE : 0;
}

/* A feature's place in CPUID, and the register state that the operating system must save for it. */
enum { EAX, EBX, ECX, EDX };
enum { NONE = 0, YMM = 0x6, ZMM = 0xe6 }; /* bits of XCR0: SSE and AVX state; mask registers and upper ZMM state */

static const struct {
  const char *name;
  uint32_t leaf, subleaf, output, bit, state;
} features[] = {
    {"sse2", 1, 0, EDX, 26, NONE},
    {"sse3", 1, 0, ECX, 0, NONE},
    {"pclmul", 1, 0, ECX, 1, NONE},
    {"ssse3", 1, 0, ECX, 9, NONE},
    {"fma", 1, 0, ECX, 12, YMM},
    {"cx16", 1, 0, ECX, 13, NONE},
    {"sse4.1", 1, 0, ECX, 19, NONE},
    {"sse4.2", 1, 0, ECX, 20, NONE},
    {"movbe", 1, 0, ECX, 22, NONE},
    {"popcnt", 1, 0, ECX, 23, NONE},
    {"avx", 1, 0, ECX, 28, YMM},
    {"f16c", 1, 0, ECX, 29, YMM},
    {"lzcnt", 0x80000001, 0, ECX, 5, NONE},
    {"bmi", 7, 0, EBX, 3, NONE},
    {"avx2", 7, 0, EBX, 5, YMM},
    {"bmi2", 7, 0, EBX, 8, NONE},
    {"avx512f", 7, 0, EBX, 16, ZMM},
    {"avx512dq", 7, 0, EBX, 17, ZMM},
    {"avx512ifma", 7, 0, EBX, 21, ZMM},
    {"avx512cd", 7, 0, EBX, 28, ZMM},
    {"avx512bw", 7, 0, EBX, 30, ZMM},
    {"avx512vl", 7, 0, EBX, 31, ZMM},
    {"avx512vbmi", 7, 0, ECX, 1, ZMM},
    {"avx512vbmi2", 7, 0, ECX, 6, ZMM},
    {"gfni", 7, 0, ECX, 8, NONE},
    {"vaes", 7, 0, ECX, 9, YMM},
    {"vpclmulqdq", 7, 0, ECX, 10, YMM},
    {"avx512vnni", 7, 0, ECX, 11, ZMM},
    {"avx512bitalg", 7, 0, ECX, 12, ZMM},
    {"avx512vpopcntdq", 7, 0, ECX, 14, ZMM},
    {"avx512fp16", 7, 0, EDX, 23, ZMM},
    {"avxvnni", 7, 1, EAX, 4, YMM},
    {"avx512bf16", 7, 1, EAX, 5, ZMM},
    {"avxifma", 7, 1, EAX, 23, YMM},
    {"avxvnniint8", 7, 1, EDX, 4, YMM},
    {"avxneconvert", 7, 1, EDX, 5, YMM},
    {"avxvnniint16", 7, 1, EDX, 10, YMM},
};

/* The register state that the operating system saves (XCR0); 0 if that is unknown. */
static uint32_t saved_state(void) {
  uint32_t registers[4], low, high;
  if (!__get_cpuid(1, &registers[EAX], &registers[EBX], &registers[ECX], &registers[EDX])) return 0;
  if (!(registers[ECX] >> 27 & 1)) return 0; /* OSXSAVE */
  __asm__ __volatile__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

int smc_cpu_has(const char *feature, size_t length) {
  for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
    if (strlen(features[i].name) != length || memcmp(features[i].name, feature, length)) continue;
    uint32_t registers[4];
    if (features[i].subleaf) { /* subleaf 0 says how many there are */
      if (!__get_cpuid_count(features[i].leaf, 0, &registers[EAX], &registers[EBX], &registers[ECX], &registers[EDX]))
        return 0;
      if (registers[EAX] < features[i].subleaf) return 0;
    }
    if (!__get_cpuid_count(features[i].leaf, features[i].subleaf, &registers[EAX], &registers[EBX], &registers[ECX],
                           &registers[EDX]))
      return 0;
    return (registers[features[i].output] >> features[i].bit & 1) &&
           (saved_state() & features[i].state) == features[i].state;
  }
  return 0;
}

#elif defined(__aarch64__)
static int32_t usual_distance(void) { return 0; } /* kernels for arm64 have no prefetches */
#endif

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

/* Bits of AT_HWCAP and, from 64 on, of AT_HWCAP2 (Linux's arch/arm64/include/uapi/asm/hwcap.h). */
static const struct {
  const char *name;
  uint32_t first, second; /* both are needed; most names have one */
} features[] = {
    {"fp-armv8", 0, 0},
    {"neon", 1, 1},
    {"aes", 3, 4},
    {"sha2", 5, 6},
    {"crc", 7, 7},
    {"lse", 8, 8},
    {"fullfp16", 9, 10},
    {"rdm", 12, 12},
    {"dotprod", 20, 20},
    {"sve", 22, 22},
    {"fp16fml", 23, 23},
    {"sve2", 64 + 1, 64 + 1},
    {"i8mm", 64 + 13, 64 + 13},
    {"bf16", 64 + 14, 64 + 14},
    {"sme", 64 + 23, 64 + 23},
};

static int hardware_bit(uint32_t bit) {
  return (bit < 64 ? getauxval(AT_HWCAP) >> bit : getauxval(AT_HWCAP2) >> (bit - 64)) & 1;
}

int smc_cpu_has(const char *feature, size_t length) {
  for (size_t i = 0; i < sizeof features / sizeof *features; i++)
    if (strlen(features[i].name) == length && !memcmp(features[i].name, feature, length))
      return hardware_bit(features[i].first) && hardware_bit(features[i].second);
  return 0;
}

#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>

static const struct {
  const char *name, *key; /* no key: every Mac of this kind has it */
} features[] = {
    {"fp-armv8", NULL},
    {"neon", NULL},
    {"crc", NULL},
    {"lse", NULL},
    {"fullfp16", "hw.optional.arm.FEAT_FP16"},
    {"dotprod", "hw.optional.arm.FEAT_DotProd"},
    {"i8mm", "hw.optional.arm.FEAT_I8MM"},
    {"bf16", "hw.optional.arm.FEAT_BF16"},
    {"sme", "hw.optional.arm.FEAT_SME"},
};

int smc_cpu_has(const char *feature, size_t length) {
  for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
    if (strlen(features[i].name) != length || memcmp(features[i].name, feature, length)) continue;
    int value = 0;
    size_t size = sizeof value;
    return !features[i].key || (sysctlbyname(features[i].key, &value, &size, NULL, 0) == 0 && value);
  }
  return 0;
}

#elif !defined(__x86_64__)
#error "smc's engine knows Linux on x86-64, and Linux, Android and macOS on 64-bit ARM"
#endif

int32_t smc_prefetch_distance(void) {
  const char *asked = getenv("SMC_PREFETCH");
  if (!asked || !*asked) return usual_distance();
  const long bytes = strtol(asked, NULL, 10);
  return bytes < 0 ? 0 : bytes > FARTHEST ? FARTHEST : (int32_t)bytes;
}

int smc_cpu_missing(const char *list, char *missing, size_t size) {
  int count = 0;
  for (size_t length; *list; list += length + (list[length] == ',')) {
    length = strcspn(list, ",");
    if (length == 0 || smc_cpu_has(list, length)) continue;
    const size_t used = strlen(missing);
    snprintf(missing + used, size - used, "%s%.*s", used ? ", " : "", (int)length, list);
    count++;
  }
  return count;
}
