/* Packed matrices (smc/codegen/kernels/layout.py, family "cuda"): where a row's codes, scales, zeros and minima lie.
 *
 * E says what is fixed for an encoding: BITS of a code, BASE3; GROUP, tiles that share a scale, 0: all, HALVES: 16 columns do;
 * SPAN, tiles behind each run of scales, 0: scales have a place of their own; SUPER: groups that share a scale of scales, or 0;
 * SIGNED_SCALES: their codes are; SCALE: 0 f16, 1 bf16, 2 f32; STORED_ZEROS, ZERO, ZERO_BITS, MINIMA, TWO_LEVEL_MINIMA; LEVELS: of a
 * codebook, which E::level looks up; TILE_BYTES. */

struct smc_matrix {
  const uint8_t *codes, *scales, *zeros;
  int32_t rows, tiles; /* padded */
};

template <int DTYPE> SMC_DEVICE float smc_stored_float(const uint8_t *base, int64_t index) {
  if (DTYPE == 0) return smc_float_of_f16(((const uint16_t *)base)[index]);
  if (DTYPE == 1) return smc_float_of_bits((uint32_t)((const uint16_t *)base)[index] << 16);
  return ((const float *)base)[index];
}

template <class E> SMC_DEVICE int32_t smc_groups(const smc_matrix &m) {
  return E::HALVES ? 2 * m.tiles : E::GROUP ? (m.tiles + E::GROUP - 1) / E::GROUP : 1;
}

template <class E> SMC_DEVICE int32_t smc_group_of(int32_t tile, int32_t half) {
  return E::HALVES ? 2 * tile + half : E::GROUP ? tile / (E::GROUP ? E::GROUP : 1) : 0;
}

/* Where the span of a tile begins, in a block of 32 rows. */
template <class E> SMC_DEVICE const uint8_t *smc_span(const smc_matrix &m, int32_t row_block, int32_t tile) {
  const int32_t size = E::SPAN ? E::SPAN : 1, spans = (m.tiles + size - 1) / size;
  const int64_t block = (int64_t)m.tiles * E::TILE_BYTES + (int64_t)spans * E::SPAN_SCALES;
  return m.codes + row_block * block + (int64_t)(tile / size) * (E::SPAN_SCALES + size * E::TILE_BYTES);
}

/* A number of the group's, one of 32 rows: its scale, or its minimum (part 1). */
template <class E> SMC_DEVICE float smc_group_float(const smc_matrix &m, int32_t row_block, int32_t row, int32_t tile, int32_t half, int part) {
  const int32_t groups = smc_groups<E>(m), group = smc_group_of<E>(tile, half);
  if (E::SPAN) {
    const int32_t inside = E::HALVES ? half : 0, count = E::HALVES ? 2 : 1;
    return smc_stored_float<E::SCALE>(smc_span<E>(m, row_block, tile), (part * count + inside) * 32 + row);
  }
  const int32_t shared = E::SUPER ? E::SUPER : 1, scales = (groups + shared - 1) / shared;
  const bool two_levels = part ? E::TWO_LEVEL_MINIMA : E::SUPER > 0;
  const int64_t begin = part ? (int64_t)m.rows * scales : 0;
  const int64_t place = two_levels || !part ? (int64_t)row_block * scales + group / shared : (int64_t)row_block * groups + group;
  const float value = smc_stored_float<E::SCALE>(m.scales, begin + place * 32 + row);
  if (!two_levels) return value;
  const uint8_t code = m.zeros[(part ? (int64_t)m.rows * groups : 0) + ((int64_t)row_block * groups + group) * 32 + row];
  return smc_mul(value, smc_float(E::SIGNED_SCALES && !part ? (int32_t)(int8_t)code : (int32_t)code));
}

/* The zero of a group. */
template <class E> SMC_DEVICE int32_t smc_zero(const smc_matrix &m, int32_t row_block, int32_t row, int32_t tile, int32_t half) {
  if (!E::STORED_ZEROS) return E::ZERO;
  const int32_t groups = smc_groups<E>(m), group = smc_group_of<E>(tile, half);
  const uint8_t *zeros = m.zeros + (int64_t)(E::SUPER > 0) * m.rows * groups;
  if (E::ZERO_BITS == 8) return zeros[((int64_t)row_block * groups + group) * 32 + row];
  const uint8_t two = zeros[((int64_t)row_block * ((groups + 1) / 2) + group / 2) * 32 + row];
  return group % 2 ? two >> 4 : two & 15;
}

/* N words, N a power of two or 8: with as few loads as possible. */
template <int N> SMC_DEVICE void smc_load_words(const uint8_t *place, uint32_t *words) {
  if (N >= 4) {
    for (int i = 0; i < N; i += 4) {
      const smc_words w = smc_load_weights(place + 4 * i);
      words[i] = w.x, words[i + 1] = w.y, words[i + 2] = w.z, words[i + 3] = w.w;
    }
  } else {
    for (int i = 0; i < N; i++) words[i] = ((const uint32_t *)place)[i];
  }
}

/* One plane of WIDTH bits of a tile, 32 columns of a row: quads |= codes << LOW. */
template <int WIDTH, int LOW> SMC_DEVICE void smc_add_plane(const uint8_t *plane, int32_t row, uint32_t *quads) {
  const uint32_t mask = 0x01010101u * ((1u << WIDTH) - 1u);
  uint32_t words[WIDTH];
  smc_load_words<WIDTH>(plane + row * (4 * WIDTH), words);
#pragma unroll
  for (int quad = 0; quad < 8; quad++) {
    const uint32_t codes = WIDTH == 8 ? words[quad % WIDTH] : words[quad / (8 / WIDTH)] >> (quad % (8 / WIDTH) * WIDTH) & mask;
    quads[quad] = LOW ? quads[quad] | codes << LOW : codes;
  }
}

/* The digits of a tile, one of the five that share bytes, of four columns: bytes are fractions of 256. */
SMC_DEVICE uint32_t smc_base3_digits(uint32_t word, int32_t tile) {
  const uint32_t power = tile == 0 ? 1u : tile == 1 ? 3u : tile == 2 ? 9u : tile == 3 ? 27u : 81u;
  uint32_t digits = 0;
#pragma unroll
  for (int byte = 0; byte < 4; byte++) digits |= ((word >> 8 * byte & 255u) * power & 255u) * 3u >> 8 << 8 * byte;
  return digits;
}

/* Codes become entries of a codebook of int8. */
template <class E> SMC_DEVICE uint32_t smc_levels(uint32_t quad) {
  uint32_t levels = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) levels |= (uint32_t)(uint8_t)(int8_t)E::level((int32_t)(quad >> 8 * i & 255u)) << 8 * i;
  return levels;
}

/* The codes of a row's tile: quad by quad four columns, one per byte. */
template <class E> SMC_DEVICE void smc_unpack(const smc_matrix &m, int32_t row_block, int32_t row, int32_t tile, uint32_t *quads) {
  if constexpr (E::BASE3) {
    const uint8_t *bytes = m.codes + ((int64_t)row_block * ((m.tiles + 4) / 5) + tile / 5) * 1024 + row * 32;
    uint32_t words[8];
    smc_load_words<8>(bytes, words);
#pragma unroll
    for (int quad = 0; quad < 8; quad++) quads[quad] = smc_base3_digits(words[quad], tile % 5);
    return;
  }
  const int32_t size = E::SPAN ? E::SPAN : 1;
  const uint8_t *codes = smc_span<E>(m, row_block, tile) + E::SPAN_SCALES + (int64_t)(tile % size) * E::TILE_BYTES;
  if constexpr (E::BITS == 8) smc_add_plane<8, 0>(codes, row, quads);
  if constexpr (E::BITS & 4) smc_add_plane<4, 0>(codes, row, quads);
  if constexpr (E::BITS & 2) smc_add_plane<2, E::BITS & 4>(codes + (E::BITS & 4) * 128, row, quads);
  if constexpr (E::BITS & 1) smc_add_plane<1, E::BITS & 6>(codes + (E::BITS & 6) * 128, row, quads);
}

/* The value that a scale multiplies, for the quad's column i: code less zero, or an entry of the codebook. */
template <class E> SMC_DEVICE float smc_number(uint32_t quad, int i, int32_t zero) {
  const int32_t code = (int32_t)(quad >> 8 * i & 255u);
  return E::LEVELS ? E::level(code) : smc_float(code - zero);
}
