/* CRC-32 as ZIP files have it: polynomial 0x04c11db7, bits of a byte from the lowest on, begun and ended by a
 * complement.
 *
 * The weights pass through here when they are loaded, so it must be no slower than memory. x86 multiplies polynomials
 * without carries: a block of 16 bytes is moved 64 bytes on by two products, and what is left in the end has the whole
 * message's remainder (V. Gopal et al.: Fast CRC Computation for Generic Polynomials Using PCLMULQDQ. Intel, 2009). ARM
 * has an instruction for this very sum. Other CPUs take 8 bytes per turn from tables (M. E. Kounavis, F. L. Berry: A
 * Systematic Approach to Building High Performance Software-Based CRC Generators. ISCC 2005). */
#include "internal.h"

#include <string.h>

#define POLYNOMIAL 0xedb88320u /* its bits reversed */
#define SLICES 8
#define FEW 512 /* up to so many bytes the tables do not pay */

static uint64_t load(const uint8_t *bytes) {
  uint64_t value;
  memcpy(&value, bytes, sizeof value);
  return value;
}

/* sum: the remainder so far, without the complements. */
static uint32_t add_by_bits(uint32_t sum, const uint8_t *data, uint64_t bytes) {
  for (; bytes; data++, bytes--) {
    sum ^= *data;
    for (int bit = 0; bit < 8; bit++) sum = sum >> 1 ^ (sum & 1 ? POLYNOMIAL : 0);
  }
  return sum;
}

static uint32_t add_by_tables(uint32_t sum, const uint8_t *data, uint64_t bytes) {
  uint32_t tables[SLICES][256]; /* a byte's remainder after so many more bytes */
  if (bytes < FEW) return add_by_bits(sum, data, bytes);
  for (int byte = 0; byte < 256; byte++) tables[0][byte] = add_by_bits(0, &(const uint8_t){(uint8_t)byte}, 1);
  for (int slice = 1; slice < SLICES; slice++)
    for (uint32_t byte = 0; byte < 256; byte++)
      tables[slice][byte] = tables[slice - 1][byte] >> 8 ^ tables[0][tables[slice - 1][byte] & 255];
  for (; bytes >= SLICES; data += SLICES, bytes -= SLICES) {
    const uint64_t value = load(data) ^ sum;
    sum = 0;
    for (int i = 0; i < SLICES; i++) sum ^= tables[SLICES - 1 - i][value >> 8 * i & 255];
  }
  return add_by_bits(sum, data, bytes);
}

#if defined(__x86_64__)
#include <immintrin.h>

#define FEATURE "pclmul"
#define LANE 16
#define TURN (4 * LANE)

/* Moves x on by so many bits as `constants` are for: x^(bits+32) and x^(bits-32) modulo the polynomial. */
__attribute__((target("pclmul"))) static __m128i move(__m128i x, __m128i constants, __m128i next) {
  const __m128i low = _mm_clmulepi64_si128(x, constants, 0x00), high = _mm_clmulepi64_si128(x, constants, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

static __m128i lane(const uint8_t *data) { return _mm_loadu_si128((const __m128i *)(const void *)data); }

__attribute__((target("pclmul"))) static uint32_t add_fast(uint32_t sum, const uint8_t *data, uint64_t bytes) {
  const __m128i by_512 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4), by_128 = _mm_set_epi64x(0xccaa009e, 0x1751997d0);
  if (bytes < 2 * TURN) return add_by_bits(sum, data, bytes);
  __m128i x[4];
  for (int i = 0; i < 4; i++) x[i] = lane(data + i * LANE);
  x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128((int)sum));
  for (data += TURN, bytes -= TURN; bytes >= TURN; data += TURN, bytes -= TURN)
    for (int i = 0; i < 4; i++) x[i] = move(x[i], by_512, lane(data + i * LANE));
  for (int i = 1; i < 4; i++) x[i] = move(x[i - 1], by_128, x[i]);
  uint8_t rest[LANE + TURN];
  memcpy(rest, &x[3], LANE);
  memcpy(rest + LANE, data, bytes);
  return add_by_bits(0, rest, LANE + bytes);
}
#elif defined(__aarch64__)
#define FEATURE "crc"

static uint32_t add_fast(uint32_t sum, const uint8_t *data, uint64_t bytes) {
  for (; bytes >= 8; data += 8, bytes -= 8)
    __asm__(".arch_extension crc\n\tcrc32x %w0, %w0, %x1" : "+r"(sum) : "r"(load(data)));
  for (; bytes; data++, bytes--)
    __asm__(".arch_extension crc\n\tcrc32b %w0, %w0, %w1" : "+r"(sum) : "r"((uint32_t)*data));
  return sum;
}
#else
#define FEATURE ""
#define add_fast add_by_tables
#endif

uint32_t smc_crc32(uint32_t crc, const void *data, uint64_t bytes) {
  static atomic_int fast; /* 1 or -1 once it is known: CPUID can take long in a virtual machine */
  if (!atomic_load(&fast)) atomic_store(&fast, smc_cpu_has(FEATURE, sizeof FEATURE - 1) ? 1 : -1);
  return ~(atomic_load(&fast) > 0 ? add_fast : add_by_tables)(~crc, data, bytes);
}

/* a * b modulo the polynomial. */
static uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = UINT32_C(1) << 31; bit; bit >>= 1) {
    if (a & bit) product ^= b;
    b = b >> 1 ^ (b & 1 ? POLYNOMIAL : 0);
  }
  return product;
}

uint32_t smc_crc32_join(uint32_t first, uint32_t second, uint64_t bytes) {
  uint32_t moved = first;
  for (uint32_t power = UINT32_C(1) << 23; bytes; bytes >>= 1, power = multiply(power, power)) /* x^8, x^16, x^32 … */
    if (bytes & 1) moved = multiply(power, moved);
  return moved ^ second;
}
