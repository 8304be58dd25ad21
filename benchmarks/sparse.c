/* Products of a matrix and a vector of int8, dense and with half of the weights 0, for benchmarks/sparse.py.
 *
 * Sparse rows are stored as a bit per weight and the others one after another: 5/8 of the bytes of int8, 3/4 of those
 * of 4 bits. AVX-512 VBMI2 puts 64 weights to their places in one instruction, so this is the cheapest form there is.
 * In 2:4 every 64 columns have 32 weights, so that no count of bits stands between a block and the next. */
#include <immintrin.h>
#include <stdint.h>

enum { BLOCK = 64 };

static inline __m512i nibbles64(const uint8_t *from) { /* 32 bytes: weights 0…31 in the low halves, 32…63 in the high */
  __m256i both = _mm256_loadu_si256((const void *)from);
  __m256i mask = _mm256_set1_epi8(15);
  __m512i wide = _mm512_castsi256_si512(_mm256_and_si256(both, mask));
  return _mm512_inserti64x4(wide, _mm256_and_si256(_mm256_srli_epi16(both, 4), mask), 1);
}

static inline __m512i nibbles32(const uint8_t *from) { /* 16 bytes, to the lower half of the vector */
  __m128i both = _mm_loadu_si128((const void *)from);
  __m128i mask = _mm_set1_epi8(15);
  __m256i wide = _mm256_castsi128_si256(_mm_and_si128(both, mask));
  return _mm512_castsi256_si512(_mm256_inserti128_si256(wide, _mm_and_si128(_mm_srli_epi16(both, 4), mask), 1));
}

/* x is unsigned, as VNNI wants it; a 4-bit code c stands for c - 8. Sums of x times 8 are taken off at the end. */

void dense8(const uint8_t *w, const uint8_t *x, int32_t *y, int64_t columns, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    __m512i sum = _mm512_setzero_si512(), more = _mm512_setzero_si512();
    const uint8_t *p = w + row * columns;
    for (int64_t c = 0; c < columns; c += 2 * BLOCK) {
      sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(x + c), _mm512_loadu_si512(p + c));
      more = _mm512_dpbusd_epi32(more, _mm512_loadu_si512(x + c + BLOCK), _mm512_loadu_si512(p + c + BLOCK));
    }
    y[row] = _mm512_reduce_add_epi32(_mm512_add_epi32(sum, more));
  }
}

void dense4(const uint8_t *w, const uint8_t *x, int32_t *y, int64_t columns, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    __m512i sum = _mm512_setzero_si512(), all = _mm512_setzero_si512(), one = _mm512_set1_epi8(1);
    const uint8_t *p = w + row * columns / 2;
    for (int64_t c = 0; c < columns; c += BLOCK) {
      __m512i v = _mm512_loadu_si512(x + c);
      sum = _mm512_dpbusd_epi32(sum, v, nibbles64(p + c / 2));
      all = _mm512_dpbusd_epi32(all, v, one);
    }
    y[row] = _mm512_reduce_add_epi32(sum) - 8 * _mm512_reduce_add_epi32(all);
  }
}

/* masks: a word per block. starts: where the weights of a row begin, in weights; NULL: every block has 32. */

void sparse8(const uint8_t *w, const uint64_t *masks, const int64_t *starts, const uint8_t *x, int32_t *y,
             int64_t columns, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row++) {
    __m512i sum = _mm512_setzero_si512(), more = _mm512_setzero_si512();
    const uint64_t *m = masks + row * (columns / BLOCK);
    const uint8_t *p = w + (starts ? starts[row] : row * columns / 2);
    for (int64_t c = 0; c < columns; c += 2 * BLOCK, m += 2) {
      const uint8_t *next = p + (starts ? __builtin_popcountll(m[0]) : 32);
      __m512i a = _mm512_maskz_expand_epi8(m[0], _mm512_loadu_si512(p));
      __m512i b = _mm512_maskz_expand_epi8(m[1], _mm512_loadu_si512(next));
      sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(x + c), a);
      more = _mm512_dpbusd_epi32(more, _mm512_loadu_si512(x + c + BLOCK), b);
      p = next + (starts ? __builtin_popcountll(m[1]) : 32);
    }
    y[row] = _mm512_reduce_add_epi32(_mm512_add_epi32(sum, more));
  }
}

/* 4 bits, 2:4 only: 16 bytes are the 32 weights of a block. A dropped weight must count 0, so 8 is taken off before. */
void sparse4(const uint8_t *w, const uint64_t *masks, const int64_t *starts, const uint8_t *x, int32_t *y,
             int64_t columns, int64_t begin, int64_t end) {
  __m512i eight = _mm512_set1_epi8(8);
  for (int64_t row = begin; row < end; row++) {
    __m512i sum = _mm512_setzero_si512();
    const uint64_t *m = masks + row * (columns / BLOCK);
    const uint8_t *p = w + row * columns / 4;
    for (int64_t c = 0; c < columns; c += BLOCK, p += 16, m++) {
      __m512i a = _mm512_maskz_expand_epi8(*m, _mm512_sub_epi8(nibbles32(p), eight));
      sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(x + c), a);
    }
    y[row] = _mm512_reduce_add_epi32(sum);
  }
  (void)starts;
}
