/* Products for many tokens, on tensor cores: int8 codes by int8 inputs, exact whatever the order, so that the four columns of a
 * register may be any four. A block has 32 rows by 64 tokens, each of its warps 16 rows by 16 tokens for all columns. What a few
 * tiles need comes to shared memory while those before are multiplied. Scales enter as docs/numerics.md says (smc_integer_sum). */

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

/* The codes of two quads of a row's tile, or what a codebook has in their place. */
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

#define SMC_STAGE 4 /* tiles that come to shared memory together */

/* Some tiles of a block of rows and of the inputs of 64 tokens. */
template <class E> struct smc_stage {
  static constexpr int SPAN = E::SPAN ? E::SPAN : 1, SUMS = E::HALVES ? 2 : 1;
  /* Whether the codes come, too: where they lie in spans that stages consist of. */
  static constexpr bool CODES = !E::BASE3 && SMC_STAGE % SPAN == 0;
  static constexpr int BYTES = CODES ? SMC_STAGE / SPAN * (E::SPAN_SCALES + SPAN * E::TILE_BYTES) : 16;
  alignas(16) uint8_t codes[BYTES];
  int8_t inputs[SMC_TENSOR_TOKENS][SMC_STAGE * 32 + 16]; /* 16: so that a warp's lanes read from different banks */
  float scales[SMC_TENSOR_TOKENS][SMC_STAGE];
  int32_t sums[SMC_TENSOR_TOKENS][SMC_STAGE][SUMS];
};

/* Begins the copies for tiles from `tile` on and tokens from `first` on; those that are not there are the last one. */
template <class E>
SMC_KERNEL void smc_begin_stage(smc_stage<E> *stage, smc_matrix m, int32_t row_block, int32_t tile, const int8_t *x, const float *x_scales,
                                const int32_t *x_sums, int32_t first, int32_t tokens, int32_t stride) {
  constexpr int pieces = SMC_STAGE * 2, sums = smc_stage<E>::SUMS;
  const int32_t thread = smc_lane_of_block(), count = m.tiles - tile < SMC_STAGE ? m.tiles - tile : SMC_STAGE;
  if (smc_stage<E>::CODES) {
    const uint8_t *source = smc_span<E>(m, row_block, tile);
    const int64_t left = smc_span<E>(m, row_block + 1, 0) - source;
    for (int32_t i = 16 * thread; i < smc_stage<E>::BYTES && i < left; i += 16 * SMC_THREADS) smc_copy_async(stage->codes + i, source + i);
  }
  for (int32_t i = thread; i < SMC_TENSOR_TOKENS * pieces; i += SMC_THREADS) {
    const int32_t token = i / pieces, piece = i % pieces;
    const int64_t row = first + token < tokens ? first + token : tokens - 1;
    if (piece < 2 * count) smc_copy_async(stage->inputs[token] + 16 * piece, x + row * stride + tile * 32 + 16 * piece);
  }
  for (int32_t i = thread; i < SMC_TENSOR_TOKENS * SMC_STAGE; i += SMC_THREADS) {
    const int32_t token = i / SMC_STAGE, place = i % SMC_STAGE;
    const int64_t row = first + token < tokens ? first + token : tokens - 1, from = row * (stride / 32) + tile + place;
    if (place >= count) continue;
    if (E::INPUTS) smc_copy_async_4(&stage->scales[token][place], x_scales + from);
    for (int half = 0; half < sums; half++) smc_copy_async_4(&stage->sums[token][place][half], x_sums + from * sums + half);
  }
  smc_end_copies();
}

/* What belongs to a tile for a warp's rows and tokens: of the thread's two rows and four tokens. packed: where scales between codes
 * are, a block of rows that begins with the stage. */
template <class E> struct smc_tile_factors {
  float scales[2], minima[2], inputs[4];
  int32_t zeros[2], sums[4];

  SMC_DEVICE_MEMBER void load(const smc_matrix &m, const smc_matrix &packed, const smc_stage<E> &stage, int32_t row_block, int32_t row, int32_t tile,
                              int half, const int32_t *tokens) {
    const int32_t place = tile % SMC_STAGE;
    constexpr bool staged = E::SPAN && smc_stage<E>::CODES;
    const smc_matrix &source = staged ? packed : m;
    const int32_t block = staged ? 0 : row_block, at = staged ? place : tile;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      scales[i] = E::ROW_SCALE ? 0.0f : smc_group_float<E>(source, block, row + 8 * i, at, half, 0);
      minima[i] = E::MINIMA ? smc_group_float<E>(source, block, row + 8 * i, at, half, 1) : 0.0f;
      zeros[i] = smc_zero<E>(m, row_block, row + 8 * i, tile, half);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      inputs[i] = E::INPUTS ? stage.scales[tokens[i]][place] : 0.0f;
      sums[i] = E::MINIMA || E::STORED_ZEROS || E::ZERO ? stage.sums[tokens[i]][place][half] : 0;
    }
  }
};

/* Adds a tile to a warp's totals. */
template <class E>
SMC_DEVICE void smc_add_tile(smc_integer_sum<E> (*totals)[4], const smc_matrix &m, const smc_stage<E> &stage, int32_t row_block, int32_t row,
                             int32_t tile, int32_t warp_tokens) {
  const int32_t lane = smc_lane_of_block() & 31, g = lane / 4, t = lane % 4, place = tile % SMC_STAGE;
  const smc_matrix packed = {stage.codes, 0, 0, 32, SMC_STAGE};
  constexpr bool staged = smc_stage<E>::CODES;
  const int32_t block = staged ? 0 : row_block, at = staged ? place : tile;
  const int32_t own[4] = {warp_tokens + 2 * t, warp_tokens + 2 * t + 1, warp_tokens + 2 * t + 8, warp_tokens + 2 * t + 9};
  uint32_t low[2], high[2];
  smc_unpack_pair<E>(staged ? packed : m, block, row, at, t, low);
  smc_unpack_pair<E>(staged ? packed : m, block, row + 8, at, t, high);
  const uint32_t a[4] = {low[0], high[0], low[1], high[1]};
  for (int half = 0; half < E::HALVES + 1; half++) {
    smc_tile_factors<E> factors;
    factors.load(m, packed, stage, row_block, row, tile, half, own);
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const uint32_t *inputs = (const uint32_t *)(stage.inputs[warp_tokens + 8 * n + g] + place * 32) + 2 * t;
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

template <class E, class Output>
SMC_KERNEL void smc_multiply_on_tensor_cores(const int8_t *x, const float *x_scales, const int32_t *x_sums, smc_matrix m, Output output,
                                             int32_t tokens, int32_t stride, int32_t begin_block, int32_t end_block, uint8_t *memory) {
  smc_stage<E> *stages = (smc_stage<E> *)memory;
  const int32_t chunks = (tokens + SMC_TENSOR_TOKENS - 1) / SMC_TENSOR_TOKENS;
  const int32_t warp = smc_lane_of_block() / 32, lane = smc_lane_of_block() & 31, g = lane / 4, t = lane % 4;
  const int32_t row = warp / 4 * 16 + g, warp_tokens = warp % 4 * 16;
  for (int32_t block = begin_block; block < end_block; block++) {
    const int32_t row_block = block / chunks, first = block % chunks * SMC_TENSOR_TOKENS;
    smc_integer_sum<E> totals[2][4];
#pragma unroll
    for (int i = 0; i < 8; i++) totals[i / 4][i % 4] = {0.0f, 0.0f, 0, 0};
    if (block > begin_block) smc_sync(); /* only of experts */
    smc_begin_stage<E>(stages, m, row_block, 0, x, x_scales, x_sums, first, tokens, stride);
    for (int32_t begin = 0, stage = 0; begin < m.tiles; begin += SMC_STAGE, stage ^= 1) {
      const int32_t next = begin + SMC_STAGE;
      smc_wait_copies(0);
      smc_sync();
      if (next < m.tiles) smc_begin_stage<E>(stages + (stage ^ 1), m, row_block, next, x, x_scales, x_sums, first, tokens, stride);
#pragma unroll 1
      for (int32_t tile = begin; tile < next && tile < m.tiles; tile++)
        smc_add_tile<E>(totals, m, stages[stage], row_block, row, tile, warp_tokens);
    }
    /* An output that keeps the largest of rows has places that both halves of the rows share: one after the other. */
    for (int turn = 0; turn < 2; turn++) {
      if (warp / 4 == turn) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
          const int r = i / 4, token = first + warp_tokens + i % 4 / 2 * 8 + 2 * t + i % 2;
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
}
