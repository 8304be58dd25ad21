/* Keys and values into the pages of the cache, attention to splits of it, and the merge of what splits left.
 *
 * S says what is fixed for a shape: HEADS, KV_HEADS, GROUP of query heads, DIM, PADDED, PAIRS that are rotated, CACHE: 0 f16,
 * 1 f32, 2 int8; NORMED, CAPPED; PAGE_SCALES, PAGE_HEAD, in elements; STATE, the floats of a row's softmax. */

#define SMC_MASKED (-3.0e38f)
#define SMC_LOWEST (-1.0e30f) /* a split's least maximum: 2 to the power of the difference of both is exactly 0 */

/* A head of q or k for attention: normed, then rotated. */
template <class S> struct smc_head {
  const float *x, *cosines, *norm;
  float factor;
  SMC_DEVICE_MEMBER float normed(int32_t d) const { return S::NORMED ? smc_mul(smc_mul(x[d], factor), norm[d]) : x[d]; }
  SMC_DEVICE_MEMBER float operator()(int32_t d) const {
    if (d >= 2 * S::PAIRS) return normed(d);
    const int32_t pair = d < S::PAIRS ? d : d - S::PAIRS;
    const float cosine = cosines[pair], sine = cosines[S::PAIRS + pair], low = normed(pair), high = normed(pair + S::PAIRS);
    return d < S::PAIRS ? smc_fma(low, cosine, smc_sub(0.0f, smc_mul(high, sine))) : smc_fma(high, cosine, smc_mul(low, sine));
  }
};

/* By all lanes of a warp. rope: of the step's tokens. */
template <class S>
SMC_DEVICE smc_head<S> smc_head_of(const float *x, const float *rope, int32_t token, const float *norm, float eps) {
  smc_head<S> head = {x, rope + (int64_t)token * (2 * S::PAIRS), norm, 0.0f};
  if (S::NORMED) head.factor = smc_norm_factor([=](int32_t d) { return x[d]; }, S::DIM, S::DIM, eps);
  return head;
}

template <class S> SMC_DEVICE float smc_cached(const uint8_t *cache, int64_t place) {
  if (S::CACHE == 0) return smc_float_of_f16(((const uint16_t *)cache)[place]);
  if (S::CACHE == 1) return ((const float *)cache)[place];
  return smc_float(((const int8_t *)cache)[place]);
}

/* Where a KV head's part of a page begins, in elements. page: bytes of one. */
template <class S> SMC_DEVICE int64_t smc_page_begin(int64_t number, int64_t page, int64_t head) {
  return number * (page / (S::CACHE == 0 ? 2 : S::CACHE == 1 ? 4 : 1)) + head * S::PAGE_HEAD;
}

template <class S> SMC_DEVICE int64_t smc_key_place(int64_t begin, int32_t token) {
  return begin + (int64_t)(token / 16) * (16 * S::PADDED) + token % 16;
}

template <class S> SMC_DEVICE int64_t smc_value_place(int64_t begin, int32_t token) {
  return begin + 64 * S::PADDED + (int64_t)token * S::PADDED;
}

template <class S> SMC_DEVICE int64_t smc_scale_of_key(int64_t begin, int32_t token) { return (begin + S::PAGE_SCALES) / 4 + token; }

/* One of a head's vectors into the cache, by a warp: channel d goes to place + d * step. Returns whether one is beyond its range. */
template <class S, class Head>
SMC_DEVICE int smc_write_head(const Head &head, uint8_t *cache, int64_t place, int32_t step, int64_t scale_place) {
  const float limit = S::CACHE == 0 ? 65520.0f : smc_float_of_bits(0x7f800000u);
  const int lane = smc_lane_of_block() & 31;
  int beyond = 0;
  float amax = 0.0f;
  for (int32_t d = lane; d < S::DIM; d += 32) {
    const float value = head(d);
    beyond |= !(smc_abs(value) < limit);
    amax = smc_max(amax, smc_abs(value));
    if (S::CACHE == 0) ((uint16_t *)cache)[place + d * step] = smc_f16_of_float(value);
    if (S::CACHE == 1) ((float *)cache)[place + d * step] = value;
  }
  if (S::CACHE == 2) {
    amax = smc_warp_max(amax);
    const float inverse = smc_inverse_of(amax);
    for (int32_t d = lane; d < S::DIM; d += 32) ((int8_t *)cache)[place + d * step] = (int8_t)smc_nearest(smc_mul(head(d), inverse));
    if (lane == 0) ((float *)cache)[scale_place] = smc_scale_of(amax);
  }
  return beyond;
}

/* A block is a tile of tokens by a KV head; a warp has a token. */
template <class S>
SMC_DEVICE void smc_rope_cache(const float *k, const float *v, const float *rope, const int32_t *slots, const struct smc_tile *tiles, uint8_t *cache,
                               int32_t *beyond, int32_t stride, int64_t page, int64_t layer, const float *norm, float eps, int32_t block) {
  const struct smc_tile *tile = tiles + block / S::KV_HEADS;
  const int32_t head = block % S::KV_HEADS, t = smc_lane_of_block() / 32;
  if (t >= tile->count) return;
  const int32_t token = tile->token + t, slot = slots[token], place = slot % 64;
  const int64_t begin = smc_page_begin<S>(slot / 64, page, layer + head), start = (int64_t)token * stride + head * S::DIM;
  const float *values = v + start;
  int fault = smc_write_head<S>(smc_head_of<S>(k + start, rope, token, norm, eps), cache, smc_key_place<S>(begin, place), 16, smc_scale_of_key<S>(begin, place));
  fault |= smc_write_head<S>([=](int32_t d) { return values[d]; }, cache, smc_value_place<S>(begin, place), 1, smc_scale_of_key<S>(begin, place) + 64);
  if (fault) smc_tell(beyond, 1);
}

/* ---- attention */

#define SMC_QUERIES 8 /* query rows that a block computes together */
#define SMC_SPLIT 256 /* cached tokens of a split: one per thread */

template <class S> struct smc_attention_room {
  float queries[SMC_QUERIES][S::DIM];
  float weights[SMC_QUERIES][SMC_SPLIT]; /* scores, then the factors of values */
  float value_scales[SMC_SPLIT];
  float sums[SMC_QUERIES][16], maxima[SMC_QUERIES], factors[SMC_QUERIES][2];
  float outputs[SMC_QUERIES][S::DIM];
};

SMC_DEVICE int32_t smc_first_seen(int32_t index, int32_t window) { return window > 0 && index + 1 > window ? index + 1 - window : 0; }

/* Query rows of a block: those of a tile, head by head. */
struct smc_rows_of_tile {
  int32_t first, count;      /* rows of the pass */
  int32_t begin, end;        /* cache indices that they see */
  int32_t table, index, window;
};

/* Scores of a split's tokens, masked: a thread has a token, for all rows. */
template <class S>
SMC_KERNEL void smc_scores(smc_attention_room<S> *room, smc_rows_of_tile rows, const uint8_t *cache, const int32_t *tables, int64_t page, int64_t head,
                           int32_t split, float cap) {
  const int32_t thread = smc_lane_of_block(), place = split * SMC_SPLIT + thread;
  const bool seen = place >= rows.begin && place < rows.end;
  float scores[SMC_QUERIES];
  float factor = 1.0f;
#pragma unroll
  for (int r = 0; r < SMC_QUERIES; r++) scores[r] = 0.0f;
  if (seen) {
    const int64_t begin = smc_page_begin<S>(tables[rows.table + place / 64], page, head);
    const int64_t key = smc_key_place<S>(begin, place % 64);
#pragma unroll 4
    for (int32_t d = 0; d < S::DIM; d++) {
      const float channel = smc_cached<S>(cache, key + d * 16);
#pragma unroll
      for (int r = 0; r < SMC_QUERIES; r++) scores[r] = smc_fma(channel, room->queries[r][d], scores[r]);
    }
    if (S::CACHE == 2) {
      factor = ((const float *)cache)[smc_scale_of_key<S>(begin, place % 64)];
      room->value_scales[thread] = ((const float *)cache)[smc_scale_of_key<S>(begin, place % 64) + 64];
    }
  } else if (S::CACHE == 2) {
    room->value_scales[thread] = 0.0f;
  }
#pragma unroll
  for (int r = 0; r < SMC_QUERIES; r++) {
    float score = S::CACHE == 2 ? smc_mul(scores[r], factor) : scores[r];
    if (S::CAPPED) score = smc_mul(smc_tanh(score), cap);
    const int32_t index = rows.index + (rows.first + r) / S::GROUP;
    const bool own = seen && place <= index && place >= smc_first_seen(index, rows.window);
    room->weights[r][thread] = own ? score : SMC_MASKED;
  }
}

/* Scores become weights against the split's own maximum; sums and maxima are merged. A warp has a row. */
template <class S> SMC_KERNEL void smc_softmax(smc_attention_room<S> *room, int32_t rows) {
  const int32_t r = smc_lane_of_block() / 32, lane = smc_lane_of_block() & 31;
  if (r >= rows) return;
  float *weights = room->weights[r];
  float maximum = SMC_LOWEST;
  for (int32_t i = lane; i < SMC_SPLIT; i += 32) maximum = smc_max(maximum, weights[i]);
  maximum = smc_warp_max(maximum);
  for (int32_t i = lane; i < SMC_SPLIT; i += 32) weights[i] = smc_exp2(smc_sub(weights[i], maximum));
  smc_sync_warp();
  float sum = 0.0f;
  for (int32_t i = lane % 16; i < SMC_SPLIT; i += 16) sum = smc_add(sum, weights[i]);
  if (S::CACHE == 2) {
    smc_sync_warp();
    for (int32_t i = lane; i < SMC_SPLIT; i += 32) weights[i] = smc_mul(weights[i], room->value_scales[i]);
  }
  const float old = room->maxima[r], now = smc_max(old, maximum);
  const float before = smc_exp2(smc_sub(old, now)), added = smc_exp2(smc_sub(maximum, now));
  smc_sync_warp();
  if (lane < 16) room->sums[r][lane] = smc_fma(sum, added, smc_mul(room->sums[r][lane], before));
  if (lane == 0) {
    room->maxima[r] = now;
    room->factors[r][0] = before;
    room->factors[r][1] = added;
  }
}

/* Weights times the split's values, merged into the outputs. */
template <class S>
SMC_KERNEL void smc_values(smc_attention_room<S> *room, smc_rows_of_tile rows, const uint8_t *cache, const int32_t *tables, int64_t page, int64_t head,
                           int32_t split) {
  const int32_t first = split * SMC_SPLIT, begin = rows.begin > first ? rows.begin : first;
  const int32_t end = rows.end < first + SMC_SPLIT ? rows.end : first + SMC_SPLIT;
  for (int32_t place = smc_lane_of_block(); place < rows.count * S::DIM; place += SMC_THREADS) {
    const int32_t r = place / S::DIM, d = place % S::DIM;
    float sum = 0.0f;
    for (int32_t token = begin; token < end;) {
      const int64_t value = smc_value_place<S>(smc_page_begin<S>(tables[rows.table + token / 64], page, head), token % 64) + d;
      const int32_t last = token / 64 * 64 + 64 < end ? token / 64 * 64 + 64 : end, count = last - token;
#pragma unroll 4
      for (int32_t i = 0; i < count; i++)
        sum = smc_fma(smc_cached<S>(cache, value + (int64_t)i * S::PADDED), room->weights[r][token - first + i], sum);
      token = last;
    }
    room->outputs[r][d] = smc_fma(sum, room->factors[r][1], smc_mul(room->outputs[r][d], room->factors[r][0]));
  }
}

/* 1 / the sum of 16 lanes as a tree; all lanes of a warp get it. */
SMC_DEVICE float smc_inverse_sum(float lane_sum) {
  const int lane = smc_lane_of_block() & 31;
  for (int distance = 8; distance; distance >>= 1) lane_sum = smc_add(lane_sum, smc_from_lane(lane_sum, lane ^ distance));
  return smc_div(1.0f, smc_from_lane(lane_sum, 0));
}

SMC_DEVICE void smc_clear_padding(float *out, const struct smc_tile &tile, int32_t width, int32_t stride) {
  for (int32_t t = 0; t < tile.count; t++)
    for (int32_t column = width + smc_lane_of_block(); column < stride; column += SMC_THREADS) out[(int64_t)(tile.token + t) * stride + column] = 0.0f;
}

/* A block is a tile by a KV head by a split; by all splits where there is one. Of any number of tokens, 8 rows at a time. */
template <class S>
SMC_DEVICE void smc_attention_of_few(const float *q, const float *rope, const uint8_t *cache, const int32_t *tables, const struct smc_tile *tiles, float *out,
                                     float *partials, int32_t stride, int64_t page, int64_t layer, float scale, int32_t window, int32_t splits,
                                     const float *norm, float eps, float cap, int32_t block, uint8_t *memory) {
  smc_attention_room<S> *room = (smc_attention_room<S> *)memory;
  const int32_t alone = block % splits, pair = block / splits, head = pair % S::KV_HEADS, warp = smc_lane_of_block() / 32, lane = smc_lane_of_block() & 31;
  const struct smc_tile tile = tiles[pair / S::KV_HEADS];
  int32_t first_split = smc_first_seen(tile.index, window) / SMC_SPLIT, last_split = (tile.index + tile.count - 1) / SMC_SPLIT + 1;
  if (splits > 1) {
    if (alone < first_split || alone >= last_split) return;
    first_split = alone, last_split = alone + 1;
  }
  smc_rows_of_tile rows = {0, 0, 0, 0, tile.table, tile.index, window};
  for (; rows.first < tile.count * S::GROUP; rows.first += SMC_QUERIES) {
    if (rows.first > 0) smc_sync();
    const int32_t left = tile.count * S::GROUP - rows.first, row = rows.first + warp;
    rows.count = left < SMC_QUERIES ? left : SMC_QUERIES;
    rows.begin = smc_first_seen(tile.index + rows.first / S::GROUP, window);
    rows.end = tile.index + (rows.first + rows.count - 1) / S::GROUP + 1;
    const int32_t token = tile.token + row / S::GROUP, query = head * S::GROUP + row % S::GROUP;
    if (warp < rows.count) {
      const smc_head<S> source = smc_head_of<S>(q + (int64_t)token * stride + query * S::DIM, rope, token, norm, eps);
      for (int32_t d = lane; d < S::DIM; d += 32) {
        room->queries[warp][d] = smc_mul(source(d), scale);
        room->outputs[warp][d] = 0.0f;
      }
      if (lane < 16) room->sums[warp][lane] = 0.0f;
      if (lane == 0) room->maxima[warp] = SMC_LOWEST;
    } else {
      for (int32_t d = lane; d < S::DIM; d += 32) room->queries[warp][d] = 0.0f;
    }
    smc_sync();
    for (int32_t split = first_split; split < last_split; split++) {
      if (split > first_split) smc_sync();
      smc_scores<S>(room, rows, cache, tables, page, layer + head, split, cap);
      smc_sync();
      smc_softmax<S>(room, rows.count);
      smc_sync();
      smc_values<S>(room, rows, cache, tables, page, layer + head, split);
    }
    smc_sync();
    if (warp < rows.count) {
      if (splits > 1) {
        float *state = partials + (((int64_t)token * splits + alone) * S::HEADS + query) * S::STATE;
        if (lane < 16) {
          state[lane] = room->sums[warp][lane];
          state[16 + lane] = room->maxima[warp];
        }
        for (int32_t d = lane; d < S::DIM; d += 32) state[32 + d] = room->outputs[warp][d];
      } else {
        const float inverse = smc_inverse_sum(room->sums[warp][lane % 16]);
        for (int32_t d = lane; d < S::DIM; d += 32) out[(int64_t)token * stride + query * S::DIM + d] = smc_mul(room->outputs[warp][d], inverse);
      }
    }
  }
  if (splits <= 1 && head == S::KV_HEADS - 1) smc_clear_padding(out, tile, S::HEADS * S::DIM, stride);
}

/* A block is a tile by a query head; a warp has a token. */
template <class S>
SMC_DEVICE void smc_merge(const struct smc_tile *tiles, const float *partials, float *out, int32_t stride, int32_t window, int32_t splits, int32_t block) {
  const struct smc_tile tile = tiles[block / S::HEADS];
  const int32_t head = block % S::HEADS, t = smc_lane_of_block() / 32, lane = smc_lane_of_block() & 31;
  if (t < tile.count) {
    const int32_t index = tile.index + t, last = index / SMC_SPLIT + 1;
    float maximum = SMC_LOWEST, sum = 0.0f, outputs[(S::DIM + 31) / 32];
#pragma unroll
    for (int i = 0; i < (S::DIM + 31) / 32; i++) outputs[i] = 0.0f;
    for (int32_t split = smc_first_seen(index, window) / SMC_SPLIT; split < last; split++) {
      const float *state = partials + (((int64_t)(tile.token + t) * splits + split) * S::HEADS + head) * S::STATE;
      const float now = smc_max(maximum, state[16]), before = smc_exp2(smc_sub(maximum, now)), added = smc_exp2(smc_sub(state[16], now));
      maximum = now;
      sum = smc_fma(state[lane % 16], added, smc_mul(sum, before));
#pragma unroll
      for (int i = 0; i < (S::DIM + 31) / 32; i++)
        if (lane + 32 * i < S::DIM) outputs[i] = smc_fma(state[32 + lane + 32 * i], added, smc_mul(outputs[i], before));
    }
    const float inverse = smc_inverse_sum(sum);
#pragma unroll
    for (int i = 0; i < (S::DIM + 31) / 32; i++)
      if (lane + 32 * i < S::DIM) out[(int64_t)(tile.token + t) * stride + head * S::DIM + lane + 32 * i] = smc_mul(outputs[i], inverse);
  }
  if (head == S::HEADS - 1) smc_clear_padding(out, tile, S::HEADS * S::DIM, stride);
}
