/* Products of a packed matrix with inputs of any number of tokens, in the order of docs/numerics.md.
 *
 * A block has 8 rows by up to TOKENS tokens. Its 256 threads are 8 rows by 32 tiles (or groups): each computes what is
 * exact, or belongs to one group, and stores it in shared memory; then a thread per row and token adds the groups up in
 * their order. */

#define SMC_ROWS 8
#define SMC_AT_ONCE 32 /* tiles, or groups, that a block computes together */

/* What is done with a finished sum. */
struct smc_output {
  static constexpr bool shares_places = false;
  const float *bias;
  float *out;
  int32_t stride, flags;
  SMC_DEVICE_MEMBER void store(int32_t token, int32_t row, float value) const {
    float *place = out + (int64_t)token * stride + row;
    if (flags & 1) value = smc_add(value, bias[row]);
    if (flags & 2) value = smc_add(value, *place);
    *place = value;
  }
};

/* The largest of each token's sums is kept, by rows modulo 16: a block of the grid sees rows in rising order. */
struct smc_argmax_output {
  static constexpr bool shares_places = true;
  const float *bias;
  struct smc_argmax *argmaxes;
  int32_t rows, flags;
  SMC_DEVICE_MEMBER void store(int32_t token, int32_t row, float value) const {
    if (row >= rows) return;
    if (flags & 1) value = smc_add(value, bias[row]);
    struct smc_argmax *argmax = argmaxes + token;
    if (!(value > argmax->logits[row % 16])) return;
    argmax->logits[row % 16] = value;
    argmax->ids[row % 16] = row;
  }
};

/* Which rows and tokens a block has. */
struct smc_part {
  int32_t row_block, row, token, count; /* row: the first, in its block of 32 */
};

SMC_DEVICE smc_part smc_part_of(int32_t block, int32_t tokens, int32_t at_once) {
  const int32_t chunks = (tokens + at_once - 1) / at_once, rows = block / chunks, first = block % chunks * at_once;
  return smc_part{rows / 4, rows % 4 * SMC_ROWS, first, tokens - first < at_once ? tokens - first : at_once};
}

/* ---- int8 inputs: E::INPUTS tiles share an input scale, 0: all; E::PARTS: several groups share an input scale */

template <class E, int TOKENS> struct smc_integer_room {
  int32_t dots[SMC_AT_ONCE][E::HALVES + 1][TOKENS][SMC_ROWS];
  float scales[SMC_AT_ONCE][E::HALVES + 1][SMC_ROWS];
  float minima[E::MINIMA ? SMC_AT_ONCE : 1][E::HALVES + 1][SMC_ROWS];
};

/* A thread's tile: dots of the codes less their zeros with the inputs of every token. */
template <class E, int TOKENS>
SMC_DEVICE void smc_tile_dots(smc_integer_room<E, TOKENS> *room, const smc_matrix &m, const smc_part &part, const int8_t *x, const int32_t *x_sums,
                              int32_t stride, int32_t tile, int32_t slot, int32_t r) {
  const int32_t row = part.row + r, sums = E::HALVES ? 2 : 1;
  uint32_t quads[8];
  smc_unpack<E>(m, part.row_block, row, tile, quads);
  if constexpr (E::LEVELS)
    for (int quad = 0; quad < 8; quad++) quads[quad] = smc_levels<E>(quads[quad]);
  for (int half = 0; half < sums; half++) {
    room->scales[slot][half][r] = smc_group_float<E>(m, part.row_block, row, tile, half, 0);
    if (E::MINIMA) room->minima[slot][half][r] = smc_group_float<E>(m, part.row_block, row, tile, half, 1);
    const int32_t zero = smc_zero<E>(m, part.row_block, row, tile, half);
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
      if (t >= part.count) break;
      const int64_t token = part.token + t;
      const smc_words *inputs = (const smc_words *)(x + token * stride + tile * 32);
      int32_t dot = 0;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        if (E::HALVES && i != half) continue;
        const smc_words words = inputs[i];
        const uint32_t four[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int j = 0; j < 4; j++)
          dot = E::LEVELS || E::BITS < 8 ? smc_dot(quads[4 * i + j], four[j], dot) : smc_dot_unsigned(quads[4 * i + j], four[j], dot);
      }
      if (E::STORED_ZEROS || E::ZERO) dot -= zero * x_sums[token * (stride / (32 / sums)) + tile * sums + half];
      room->dots[slot][half][t][r] = dot;
    }
  }
}

/* One row and token: its groups up to now. */
template <class E> struct smc_integer_sum {
  float sum, part;
  int32_t dot, amount;

  /* What a tile, or half of one, adds; last: of the row. scale, minimum: of its group; input: of its inputs. */
  SMC_DEVICE_MEMBER void add(int32_t tile, int half, bool last, int32_t tile_dot, int32_t tile_amount, float scale, float minimum, float input) {
    constexpr int unit = E::GROUP == 0 ? E::INPUTS : E::INPUTS == 0 ? E::GROUP : E::GROUP < E::INPUTS ? E::GROUP : E::INPUTS;
    constexpr bool apart = E::INPUTS == 0 || E::PARTS;
    dot += tile_dot;
    if (E::MINIMA) amount += tile_amount;
    if (!E::HALVES && !last && (unit == 0 || (tile + 1) % (unit ? unit : 1) != 0)) return;
    const float factor = E::ROW_SCALE ? (apart ? 1.0f : input) : apart ? scale : smc_mul(scale, input);
    part = smc_fma(smc_float(dot), factor, part);
    if (E::MINIMA) part = smc_fma(minimum, apart ? smc_float(amount) : smc_mul(smc_float(amount), input), part);
    dot = amount = 0;
    if (!E::PARTS || (E::HALVES && half == 0)) return;
    if (last || (tile + 1) % (E::INPUTS ? E::INPUTS : 1) == 0) {
      sum = smc_fma(part, input, sum);
      part = 0.0f;
    }
  }
};

template <class E, int TOKENS, class Output>
SMC_KERNEL void smc_multiply_integers(const int8_t *x, const float *x_scales, const int32_t *x_sums, smc_matrix m, Output output,
                                      int32_t tokens, int32_t stride, int32_t begin_block, int32_t end_block, uint8_t *memory) {
  smc_integer_room<E, TOKENS> *room = (smc_integer_room<E, TOKENS> *)memory;
  for (int32_t block = begin_block; block < end_block; block++) {
    if (block > begin_block) smc_sync(); /* only of experts */
    const smc_part part = smc_part_of(block, tokens, TOKENS);
    const int32_t thread = smc_lane_of_block(), r = (thread & 31) >> 2, slot = (thread >> 5) * 4 + (thread & 3);
    const int32_t row = thread % SMC_ROWS, t = thread / SMC_ROWS, sums = E::HALVES ? 2 : 1;
    const int64_t token = part.token + t;
    smc_integer_sum<E> total = {0.0f, 0.0f, 0, 0};
    for (int32_t begin = 0; begin < m.tiles; begin += SMC_AT_ONCE) {
      if (begin > 0) smc_sync();
      if (begin + slot < m.tiles) smc_tile_dots<E, TOKENS>(room, m, part, x, x_sums, stride, begin + slot, slot, r);
      smc_sync();
      if (t < part.count) {
        for (int32_t s = 0; s < SMC_AT_ONCE && begin + s < m.tiles; s++) {
          const int32_t tile = begin + s;
          const float input = E::INPUTS ? x_scales[token * (stride / 32) + tile] : 0.0f;
          for (int half = 0; half < sums; half++) {
            const int32_t amount = E::MINIMA ? x_sums[token * (stride / (32 / sums)) + tile * sums + half] : 0;
            total.add(tile, half, tile + 1 == m.tiles, room->dots[s][half][t][row], amount, room->scales[s][half][row],
                      room->minima[E::MINIMA ? s : 0][half][row], input);
          }
        }
      }
    }
    if (t >= part.count) continue;
    float value = E::PARTS ? total.sum : total.part;
    if (E::ROW_SCALE) value = smc_mul(value, smc_group_float<E>(m, part.row_block, part.row + row, 0, 0, 0));
    if (E::INPUTS == 0) value = smc_mul(value, x_scales[token]);
    output.store((int32_t)token, part.row_block * 32 + part.row + row, value);
  }
}

/* ---- float inputs, packed weights: a thread goes through its group column by column */

template <class E, int TOKENS> struct smc_part_room {
  float parts[SMC_AT_ONCE][E::HALVES + 1][TOKENS][SMC_ROWS];
  float amounts[E::MINIMA ? SMC_AT_ONCE : 1][E::HALVES + 1][TOKENS];
  float scales[SMC_AT_ONCE][E::HALVES + 1][SMC_ROWS];
  float minima[E::MINIMA ? SMC_AT_ONCE : 1][E::HALVES + 1][SMC_ROWS];
};

template <class E, int TOKENS>
SMC_DEVICE void smc_group_parts(smc_part_room<E, TOKENS> *room, const smc_matrix &m, const smc_part &part, const float *x, int32_t stride,
                                int32_t first, int32_t last, int32_t slot, int32_t r) {
  const int32_t row = part.row + r;
  for (int half = 0; half < E::HALVES + 1; half++) {
    float parts[TOKENS], amounts[TOKENS];
#pragma unroll
    for (int t = 0; t < TOKENS; t++) parts[t] = amounts[t] = 0.0f;
    const int32_t zero = smc_zero<E>(m, part.row_block, row, first, half);
    for (int32_t tile = first; tile < last; tile++) {
      uint32_t quads[8];
      smc_unpack<E>(m, part.row_block, row, tile, quads);
#pragma unroll
      for (int quad = 0; quad < 8; quad++) {
        if (E::HALVES && quad / 4 != half) continue;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float number = smc_number<E>(quads[quad], i, zero);
#pragma unroll
          for (int t = 0; t < TOKENS; t++) {
            if (t >= part.count) break;
            const float value = x[(int64_t)(part.token + t) * stride + tile * 32 + quad * 4 + i];
            parts[t] = smc_fma(number, value, parts[t]);
            if (E::MINIMA) amounts[t] = smc_add(amounts[t], value);
          }
        }
      }
    }
    room->scales[slot][half][r] = smc_group_float<E>(m, part.row_block, row, first, half, 0);
    if (E::MINIMA) room->minima[slot][half][r] = smc_group_float<E>(m, part.row_block, row, first, half, 1);
    for (int t = 0; t < part.count; t++) {
      room->parts[slot][half][t][r] = parts[t];
      if (E::MINIMA && r == 0) room->amounts[slot][half][t] = amounts[t];
    }
  }
}

template <class E, int TOKENS, class Output>
SMC_KERNEL void smc_multiply_floats(const float *x, smc_matrix m, Output output, int32_t tokens, int32_t stride, int32_t begin_block, int32_t end_block, uint8_t *memory) {
  smc_part_room<E, TOKENS> *room = (smc_part_room<E, TOKENS> *)memory;
  for (int32_t block = begin_block; block < end_block; block++) {
    if (block > begin_block) smc_sync(); /* only of experts */
    const smc_part part = smc_part_of(block, tokens, TOKENS);
    const int32_t thread = smc_lane_of_block(), r = (thread & 31) >> 2, slot = (thread >> 5) * 4 + (thread & 3);
    const int32_t row = thread % SMC_ROWS, t = thread / SMC_ROWS;
    const int32_t size = E::GROUP ? E::GROUP : m.tiles, groups = (m.tiles + size - 1) / size;
    float total = 0.0f;
    for (int32_t begin = 0; begin < groups; begin += SMC_AT_ONCE) {
      const int32_t first = (begin + slot) * size, last = first + size < m.tiles ? first + size : m.tiles;
      if (begin > 0) smc_sync();
      if (begin + slot < groups) smc_group_parts<E, TOKENS>(room, m, part, x, stride, first, last, slot, r);
      smc_sync();
      if (t < part.count) {
        for (int32_t s = 0; s < SMC_AT_ONCE && begin + s < groups; s++) {
          for (int half = 0; half < E::HALVES + 1; half++) {
            const float sum = room->parts[s][half][t][row], scale = room->scales[s][half][row];
            total = E::ROW_SCALE ? smc_mul(sum, scale) : smc_fma(sum, scale, total);
            if (E::MINIMA) total = smc_fma(room->amounts[s][half][t], room->minima[s][half][row], total);
          }
        }
      }
    }
    if (t < part.count) output.store(part.token + t, part.row_block * 32 + part.row + row, total);
  }
}

/* ---- float weights: [row block][column][32 rows]; a thread per row and token goes through the columns */

#define SMC_COLUMNS 64 /* staged in shared memory */

template <int TOKENS> struct smc_float_room {
  float weights[SMC_COLUMNS][SMC_ROWS];
  float inputs[TOKENS][SMC_COLUMNS];
};

template <class E, int TOKENS, class Output>
SMC_KERNEL void smc_multiply_float_weights(const float *x, const uint8_t *weights, Output output, int32_t tokens, int32_t columns, int32_t stride,
                                           int32_t begin_block, int32_t end_block, uint8_t *memory) {
  smc_float_room<TOKENS> *room = (smc_float_room<TOKENS> *)memory;
  for (int32_t block = begin_block; block < end_block; block++) {
    if (block > begin_block) smc_sync(); /* only of experts */
    const smc_part part = smc_part_of(block, tokens, TOKENS);
    const int32_t thread = smc_lane_of_block(), row = thread % SMC_ROWS, t = thread / SMC_ROWS;
    float total = 0.0f;
    for (int32_t begin = 0; begin < columns; begin += SMC_COLUMNS) {
      const int32_t count = columns - begin < SMC_COLUMNS ? columns - begin : SMC_COLUMNS;
      if (begin > 0) smc_sync();
      for (int32_t i = thread; i < count * SMC_ROWS; i += SMC_THREADS) {
        const int64_t place = ((int64_t)part.row_block * columns + begin + i / SMC_ROWS) * 32 + part.row + i % SMC_ROWS;
        room->weights[i / SMC_ROWS][i % SMC_ROWS] = smc_stored_float<E::SCALE>(weights, place);
      }
      for (int32_t i = thread; i < count * part.count; i += SMC_THREADS)
        room->inputs[i / count][i % count] = x[(int64_t)(part.token + i / count) * stride + begin + i % count];
      smc_sync();
      if (t < part.count)
        for (int32_t column = 0; column < count; column++) total = smc_fma(room->weights[column][row], room->inputs[t][column], total);
    }
    if (t < part.count) output.store(part.token + t, part.row_block * 32 + part.row + row, total);
  }
}

/* ---- rows of a table by tokens */

template <class E>
SMC_DEVICE void smc_embed(const int32_t *tokens, const uint8_t *codes, const uint8_t *scales, const uint8_t *zeros, float *out, int32_t rows,
                          int32_t columns, int32_t stride, float scale, int32_t token) {
  const int32_t row_block = tokens[token] / 32, row = tokens[token] % 32;
  const smc_matrix m = {codes, scales, zeros, rows, (columns + 31) / 32};
  float *place = out + (int64_t)token * stride;
  if constexpr (E::FLOATS) {
    for (int32_t column = smc_lane_of_block(); column < stride; column += SMC_THREADS)
      place[column] = column < columns ? smc_mul(smc_stored_float<E::SCALE>(codes, ((int64_t)row_block * columns + column) * 32 + row), scale) : 0.0f;
  } else {
    for (int32_t tile = smc_lane_of_block(); tile < m.tiles; tile += SMC_THREADS) {
      uint32_t quads[8];
      smc_unpack<E>(m, row_block, row, tile, quads);
      for (int32_t column = 0; column < 32; column++) {
        const int half = E::HALVES ? column / 16 : 0;
        const float group = smc_group_float<E>(m, row_block, row, tile, half, 0);
        const float number = smc_number<E>(quads[column / 4], column % 4, smc_zero<E>(m, row_block, row, tile, half));
        const float value = E::MINIMA ? smc_fma(number, group, smc_group_float<E>(m, row_block, row, tile, half, 1)) : smc_mul(number, group);
        place[tile * 32 + column] = tile * 32 + column < columns ? smc_mul(value, scale) : 0.0f;
      }
    }
    for (int32_t column = m.tiles * 32 + smc_lane_of_block(); column < stride; column += SMC_THREADS) place[column] = 0.0f;
  }
}
