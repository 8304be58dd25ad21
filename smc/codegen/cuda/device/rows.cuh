/* Kernels that work on rows of activations. A row has `stride` columns, whole tiles of 32; its padding holds zeros. A
 * row's values are a function of the column, so that they can be computed again when they are needed again. */

/* The floats of a row, by all threads of a block. */
template <class Row> SMC_DEVICE void smc_store_floats(const Row &row, float *out, int32_t stride) {
  for (int32_t column = smc_lane_of_block(); column < stride; column += SMC_THREADS) out[column] = row(column);
}

/* The codes of one group of `tiles` tiles from `tile` on, by one warp; every tile keeps the group's scale. SUM: columns of a sum. */
template <int SUM, class Row>
SMC_DEVICE float smc_store_group(const Row &row, int8_t *codes, int32_t *sums, int32_t tile, int32_t tiles) {
  const int lane = smc_lane_of_block() & 31;
  float amax = 0.0f;
  for (int32_t t = tile; t < tile + tiles; t++) amax = smc_max(amax, smc_abs(row(t * 32 + lane)));
  amax = smc_warp_max(amax);
  const float inverse = smc_inverse_of(amax);
  for (int32_t t = tile; t < tile + tiles; t++) {
    const int32_t code = smc_nearest(smc_mul(row(t * 32 + lane), inverse));
    codes[t * 32 + lane] = (int8_t)code;
    const int32_t sum = smc_warp_sum(code, SUM);
    if (lane % SUM == 0) sums[t * (32 / SUM) + lane / SUM] = sum;
  }
  return smc_scale_of(amax);
}

/* A row whose tiles of 32 columns are multiplied by the Hadamard matrix over its root, as a warp reads them. */
template <class Row> struct smc_turned_row {
  Row row;
  float root;
  SMC_DEVICE_MEMBER float operator()(int32_t column) const {
    const int lane = column & 31;
    float value = smc_mul(row(column), root);
    for (int half = 1; half < 32; half *= 2) {
      const float other = smc_from_lane(value, lane ^ half);
      value = lane & half ? smc_sub(other, value) : smc_add(value, other);
    }
    return value;
  }
};

template <class Row> SMC_DEVICE smc_turned_row<Row> smc_turned(const Row &row, float root) { return smc_turned_row<Row>{row, root}; }

/* The codes, scales and sums of a row. GROUP: tiles that share a scale; 0: all, which has one scale only. */
template <int GROUP, int SUM, class Row>
SMC_DEVICE void smc_store_codes(const Row &row, int8_t *codes, float *scales, int32_t *sums, int32_t stride) {
  const int32_t tiles = stride / 32, size = GROUP ? GROUP : tiles, lane = smc_lane_of_block() & 31;
  for (int32_t tile = smc_lane_of_block() / 32 * size; tile < tiles; tile += SMC_WARPS * size) {
    const int32_t count = tiles - tile < size ? tiles - tile : size;
    const float scale = smc_store_group<SUM>(row, codes, sums, tile, count);
    if (GROUP == 0) {
      if (lane == 0) scales[0] = scale;
    } else {
      for (int32_t t = lane; t < count; t += 32) scales[tile + t] = scale;
    }
  }
}

/* Where a token's row lies in each part of a form. */
template <int GROUP> SMC_DEVICE int64_t smc_scale_place(int64_t token, int32_t stride) { return GROUP ? token * (stride / 32) : token; }

/* ---- norms */

/* 1 / sqrt(mean square + eps) of `width` values, by a warp: column i belongs to lane i mod 32. */
template <class Row> SMC_DEVICE float smc_norm_factor(const Row &row, int32_t columns, int32_t width, float eps) {
  float squares = 0.0f;
  for (int32_t column = smc_lane_of_block() & 31; column < columns; column += 32) {
    const float value = row(column);
    squares = smc_fma(value, value, squares);
  }
  const float mean = smc_div(smc_warp_tree(squares), smc_float(width));
  return smc_div(1.0f, smc_sqrt(smc_add(mean, eps)));
}

struct smc_normed_row {
  const float *x, *weight, *residual;
  float factor;
  SMC_DEVICE_MEMBER float operator()(int32_t column) const {
    const float value = smc_mul(smc_mul(x[column], factor), weight[column]);
    return residual ? smc_add(value, residual[column]) : value;
  }
};

/* Every warp sums the row up for itself: no threads wait for each other. */
SMC_DEVICE struct smc_normed_row smc_rms_norm(const float *x, const float *weight, const float *residual, int32_t width, int32_t stride, float eps) {
  const float factor = smc_norm_factor([=](int32_t column) { return x[column]; }, stride, width, eps);
  return smc_normed_row{x, weight, residual, factor};
}

struct smc_centered_row {
  const float *x, *weight, *bias;
  int32_t width;
  float mean, factor;
  SMC_DEVICE_MEMBER float difference(int32_t column) const { return column < width ? smc_sub(x[column], mean) : 0.0f; }
  SMC_DEVICE_MEMBER float operator()(int32_t column) const {
    const float value = smc_mul(difference(column), factor);
    return bias ? smc_fma(value, weight[column], bias[column]) : smc_mul(value, weight[column]);
  }
};

SMC_DEVICE struct smc_centered_row smc_layer_norm(const float *x, const float *weight, const float *bias, int32_t width, int32_t stride, float eps) {
  float sum = 0.0f;
  for (int32_t column = smc_lane_of_block() & 31; column < stride; column += 32) sum = smc_add(sum, x[column]);
  smc_centered_row row{x, weight, bias, width, smc_div(smc_warp_tree(sum), smc_float(width)), 0.0f};
  row.factor = smc_norm_factor([=](int32_t column) { return row.difference(column); }, stride, width, eps);
  return row;
}

/* Every head of a row for itself, by a warp; weights of its own. */
SMC_DEVICE void smc_head_layer_norm(const float *x, const float *weight, float *out, int32_t heads, int32_t dim, int32_t stride, float eps) {
  for (int32_t head = smc_lane_of_block() / 32; head < heads; head += SMC_WARPS) {
    const smc_centered_row row = smc_layer_norm(x + head * dim, weight + head * dim, 0, dim, dim, eps);
    for (int32_t d = smc_lane_of_block() & 31; d < dim; d += 32) out[head * dim + d] = row(d);
  }
  for (int32_t column = heads * dim + smc_lane_of_block(); column < stride; column += SMC_THREADS) out[column] = 0.0f;
}

/* ---- columns moved and rotated */

/* One token's row; the blocks of `rotation` columns are multiplied by a Hadamard matrix over its root, which `root` is. */
template <bool PERMUTED, int ROTATION>
SMC_DEVICE void smc_transform(const float *x, const int32_t *order, float *out, int32_t columns, int32_t stride, float root) {
  for (int32_t column = smc_lane_of_block(); column < stride; column += SMC_THREADS) {
    const float value = x[PERMUTED ? order[column] : column];
    out[column] = ROTATION ? smc_mul(value, root) : value;
  }
  for (int32_t half = 1; half < ROTATION; half *= 2) {
    smc_sync();
    for (int32_t pair = smc_lane_of_block(); pair < columns / 2; pair += SMC_THREADS) {
      const int32_t low = pair / half * 2 * half + pair % half;
      const float first = out[low], second = out[low + half];
      out[low] = smc_add(first, second);
      out[low + half] = smc_sub(first, second);
    }
  }
}
