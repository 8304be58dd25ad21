/* Products for many tokens, on tensor cores: int8 codes by int8 inputs, exact whatever the order, so that the four columns of a
 * register may be any four. A block has 32 rows by 64 tokens, each of its warps 16 rows by 16 tokens for all columns: nothing is
 * shared, and no thread waits for another. Scales enter as docs/numerics.md says (smc_integer_sum). */

#define SMC_MANY_TOKENS 8 /* with more tokens than this, linears use this file */
#define SMC_TENSOR_TOKENS 64

/* How many blocks a linear has. */
SMC_DEVICE int32_t smc_integer_blocks(int32_t rows, int32_t tokens) {
  return tokens > SMC_MANY_TOKENS ? rows / 32 * ((tokens + SMC_TENSOR_TOKENS - 1) / SMC_TENSOR_TOKENS) : rows / SMC_ROWS * (tokens > 0);
}
SMC_DEVICE int32_t smc_float_blocks(int32_t rows, int32_t tokens) { return rows / SMC_ROWS * ((tokens + 7) / 8); }

/* Two neighbouring quads of a plane of a row's tile: those number 2 * pair and the next; quads |= codes << LOW. */
template <int WIDTH, int LOW> SMC_DEVICE void smc_add_pair(const uint8_t *plane, int32_t row, int32_t pair, uint32_t *quads) {
  const uint32_t *words = (const uint32_t *)(plane + row * (4 * WIDTH));
  const uint32_t mask = 0x01010101u * ((1u << WIDTH) - 1u);
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int32_t quad = 2 * pair + i, each = 8 / WIDTH;
    const uint32_t codes = WIDTH == 8 ? words[quad] : words[quad / each] >> (quad % each * WIDTH) & mask;
    quads[i] = LOW ? quads[i] | codes << LOW : codes;
  }
}

/* The codes of two quads of a row's tile, or a codebook's entries for them. */
template <class E> SMC_DEVICE void smc_unpack_pair(const smc_matrix &m, int32_t row_block, int32_t row, int32_t tile, int32_t pair, uint32_t *quads) {
  if constexpr (E::BASE3) {
    const uint32_t *words = (const uint32_t *)(m.codes + ((int64_t)row_block * ((m.tiles + 4) / 5) + tile / 5) * 1024 + row * 32);
    for (int i = 0; i < 2; i++) quads[i] = smc_base3_digits(words[2 * pair + i], tile % 5);
  } else {
    const int32_t size = E::SPAN ? E::SPAN : 1;
    const uint8_t *codes = smc_span<E>(m, row_block, tile) + E::SPAN_SCALES + (int64_t)(tile % size) * E::TILE_BYTES;
    if constexpr (E::BITS == 8) smc_add_pair<8, 0>(codes, row, pair, quads);
    if constexpr (E::BITS & 4) smc_add_pair<4, 0>(codes, row, pair, quads);
    if constexpr (E::BITS & 2) smc_add_pair<2, E::BITS & 4>(codes + (E::BITS & 4) * 128, row, pair, quads);
    if constexpr (E::BITS & 1) smc_add_pair<1, E::BITS & 6>(codes + (E::BITS & 6) * 128, row, pair, quads);
  }
  if constexpr (E::LEVELS)
    for (int i = 0; i < 2; i++) quads[i] = smc_levels<E>(quads[i]);
}

/* What belongs to a tile for a warp's rows and tokens: of the thread's two rows and four tokens. */
template <class E> struct smc_tile_factors {
  float scales[2], minima[2], inputs[4];
  int32_t zeros[2], sums[4];

  SMC_DEVICE_MEMBER void load(const smc_matrix &m, int32_t row_block, int32_t row, int32_t tile, int half, const float *x_scales, const int32_t *x_sums,
                              int32_t stride, const int32_t *tokens) {
    constexpr int per_tile = E::HALVES ? 2 : 1;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      scales[i] = E::ROW_SCALE ? 0.0f : smc_group_float<E>(m, row_block, row + 8 * i, tile, half, 0);
      minima[i] = E::MINIMA ? smc_group_float<E>(m, row_block, row + 8 * i, tile, half, 1) : 0.0f;
      zeros[i] = smc_zero<E>(m, row_block, row + 8 * i, tile, half);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      inputs[i] = E::INPUTS ? x_scales[(int64_t)tokens[i] * (stride / 32) + tile] : 0.0f;
      sums[i] = E::MINIMA || E::STORED_ZEROS || E::ZERO ? x_sums[(int64_t)tokens[i] * (stride / (32 / per_tile)) + tile * per_tile + half] : 0;
    }
  }
};

template <class E, class Output>
SMC_KERNEL void smc_multiply_on_tensor_cores(const int8_t *x, const float *x_scales, const int32_t *x_sums, smc_matrix m, Output output,
                                             int32_t tokens, int32_t stride, int32_t block) {
  const int32_t chunks = (tokens + SMC_TENSOR_TOKENS - 1) / SMC_TENSOR_TOKENS, row_block = block / chunks;
  const int32_t warp = smc_lane_of_block() / 32, lane = smc_lane_of_block() & 31, g = lane / 4, t = lane % 4;
  const int32_t row = warp / 4 * 16 + g, first = block % chunks * SMC_TENSOR_TOKENS + warp % 4 * 16;
  /* Tokens whose inputs the thread reads, and those whose sums it has; missing ones read the last one's. */
  int32_t read[2], own[4];
#pragma unroll
  for (int i = 0; i < 2; i++) read[i] = first + 8 * i + g < tokens ? first + 8 * i + g : tokens - 1;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int32_t token = first + i / 2 * 8 + 2 * t + i % 2;
    own[i] = token < tokens ? token : tokens - 1;
  }
  smc_integer_sum<E> totals[2][4];
#pragma unroll
  for (int i = 0; i < 8; i++) totals[i / 4][i % 4] = {0.0f, 0.0f, 0, 0};
  for (int32_t tile = 0; tile < m.tiles; tile++) {
    uint32_t low[2], high[2];
    smc_unpack_pair<E>(m, row_block, row, tile, t, low);
    smc_unpack_pair<E>(m, row_block, row + 8, tile, t, high);
    const uint32_t a[4] = {low[0], high[0], low[1], high[1]};
    for (int half = 0; half < E::HALVES + 1; half++) {
      smc_tile_factors<E> factors;
      factors.load(m, row_block, row, tile, half, x_scales, x_sums, stride, own);
#pragma unroll
      for (int n = 0; n < 2; n++) {
        const uint32_t *inputs = (const uint32_t *)(x + (int64_t)read[n] * stride + tile * 32) + 2 * t;
        const bool here = !E::HALVES || t / 2 == half; /* columns of the other half do not count */
        const uint32_t b[2] = {here ? inputs[0] : 0u, here ? inputs[1] : 0u};
        int32_t dots[4] = {0, 0, 0, 0};
        smc_tensor_product<(E::LEVELS != 0)>(dots, a, b);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int r = i / 2, token = 2 * n + i % 2;
          totals[r][token].add(tile, half, tile + 1 == m.tiles, dots[i] - factors.zeros[r] * factors.sums[token], factors.sums[token],
                               factors.scales[r], factors.minima[r], factors.inputs[token]);
        }
      }
    }
  }
  /* An output that keeps the largest of rows has places that both halves of the rows share: one after the other. */
  for (int turn = 0; turn < 2; turn++) {
    if (warp / 4 == turn) {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const int r = i / 4, token = first + i % 4 / 2 * 8 + 2 * t + i % 2;
        const int32_t at = row + 8 * r;
        if (token >= tokens) continue;
        float value = E::PARTS ? totals[r][i % 4].sum : totals[r][i % 4].part;
        if (E::ROW_SCALE) value = smc_mul(value, smc_group_float<E>(m, row_block, at, 0, 0, 0));
        if (E::INPUTS == 0) value = smc_mul(value, x_scales[token]);
        output.store(token, row_block * 32 + at, value);
      }
    }
    if (Output::shares_places && turn == 0) smc_sync();
  }
}
