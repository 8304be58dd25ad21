/* Attention of many tokens of a sequence: to a split of 256 cached tokens four pairs of warps have up to 8 query rows each, tokens by
 * heads of a group, and a lane of a pair has the scores of every 64th cached token, in registers. Keys and values come to shared memory
 * as floats, some channels of all tokens, then all channels of some tokens: so a block reads them once for all of its rows. Operations
 * and their order are those of smc_attention_of_few. */

#define SMC_PAIRS 4     /* of warps: the warps of a pair have the same number modulo 4 */
#define SMC_CHANNELS 16 /* of all keys of a split in shared memory */
#define SMC_VALUES 32   /* cached tokens whose values are there */

/* How the rows of a run, neighbouring tiles of a sequence, go to pairs of warps. */
template <int GROUP> struct smc_run_rows {
  enum {
    PASSES = (GROUP + 3) / 4,              /* over the heads of a group */
    HEADS = (GROUP + PASSES - 1) / PASSES, /* of a pass */
    TOKENS = 8 / HEADS,                    /* of a pair */
    ROWS = TOKENS * HEADS,                 /* of a pair */
    TILES = SMC_PAIRS * TOKENS / SMC_TILE_TOKENS
  };
};

/* What a block of the grid does: `tiles` tiles, of which the first is that of the kernel's block `block`. */
struct smc_run {
  int32_t block, tiles;
};

/* The run of a claimed block, of which each tile has `each`; it is empty if the tile belongs to a run that began before. Tiles come in
 * another order, so that those where runs begin follow one another, and blocks of the grid have the same number of them. */
template <int GROUP> SMC_KERNEL smc_run smc_run_of(int32_t claimed, const struct smc_tile *tiles, int32_t count, int32_t each) {
  constexpr int32_t most = smc_run_rows<GROUP>::TILES;
  int32_t tile = claimed / each, first = 0;
  for (int32_t more; tile >= (more = (count - first + most - 1) / most); first++) tile -= more;
  tile = tile * most + first;
  const auto goes_on = [=](int32_t t) {
    const bool same = tiles[t].table == tiles[t - 1].table && tiles[t].index == tiles[t - 1].index + SMC_TILE_TOKENS;
    return same && tiles[t].index / SMC_TILE_TOKENS % most != 0;
  };
  smc_run run = {tile * each + claimed % each, 0};
  if (tile > 0 && goes_on(tile)) return run;
  run.tiles = 1;
  while (tile + run.tiles < count && goes_on(tile + run.tiles)) run.tiles++;
  return run;
}

/* A run for a KV head: what all functions here need. In shared memory, for there are no registers for it. */
struct smc_prompt {
  const float *q, *rope, *norm;
  const uint8_t *cache;
  const int32_t *tables;
  float *out, *partials;
  int64_t page, head; /* of the cache */
  int32_t token, count, table, index, query, stride, window, splits, alone;
  int32_t begin, end, first_split, last_split; /* cache indices that the run sees, and their splits */
  float scale, eps, cap;

  /* Whether anything of the split is seen between its tokens `from` and `to`. */
  SMC_DEVICE_MEMBER bool sees(int32_t split, int32_t from, int32_t to) const { return begin < split * SMC_SPLIT + to && end > split * SMC_SPLIT + from; }
};

template <class S> struct smc_prompt_room {
  static constexpr int ROWS = 8 * SMC_PAIRS;
  /* Channels that a thread has at once: few where the head has many, for until then all scores are in registers. */
  static constexpr int LANE = S::DIM > 128 ? 2 : (S::DIM + 31) / 32;
  smc_prompt prompt;
  float sums[16][ROWS], maxima[ROWS], tops[2][ROWS], norms[ROWS], before[ROWS], added[ROWS];
  const float *queried[ROWS], *rotations[ROWS]; /* a row's query, 0: it is not there; its cosines and sines */
  const uint8_t *pages[4];                      /* the KV head's part of the split's; 0: it is not seen */
  union alignas(16) {
    struct {
      float keys[SMC_CHANNELS][SMC_SPLIT]; /* those of a lane are together */
      float queries[SMC_PAIRS][SMC_CHANNELS][8];
    };
    struct {
      float weights[64][ROWS + 4]; /* 4: so that a warp's lanes write to different banks */
      float values[SMC_VALUES][32 * LANE];
    };
  };
};

/* A row: its token of the run, and its head of the group. */
template <class S> struct smc_prompt_row {
  using Rows = smc_run_rows<S::GROUP>;
  int32_t token, head;
  bool there;
  SMC_DEVICE_MEMBER smc_prompt_row(const smc_prompt &p, int32_t pass, int32_t row) {
    token = row / 8 * Rows::TOKENS + row % 8 / Rows::HEADS;
    head = pass * Rows::HEADS + row % 8 % Rows::HEADS;
    there = row % 8 < Rows::ROWS && token < p.count && head < S::GROUP;
  }
  SMC_DEVICE_MEMBER float *state(const smc_prompt &p) const {
    return p.partials + (((int64_t)(p.token + token) * p.splits + p.alone) * S::HEADS + p.query + head) * S::STATE;
  }
  SMC_DEVICE_MEMBER float *output(const smc_prompt &p) const {
    return p.splits > 1 ? state(p) + 32 : p.out + (int64_t)(p.token + token) * p.stride + (p.query + head) * S::DIM;
  }
};

/* Four neighbouring numbers of the cache. */
template <class S> SMC_DEVICE void smc_cached_four(const uint8_t *cache, int64_t place, float *out) {
  if (S::CACHE == 0) {
    const uint64_t four = *(const uint64_t *)(cache + 2 * place);
    for (int i = 0; i < 4; i++) out[i] = smc_float_of_f16((uint16_t)(four >> 16 * i));
  } else if (S::CACHE == 1) {
    const smc_words four = *(const smc_words *)(cache + 4 * place);
    out[0] = smc_float_of_bits(four.x), out[1] = smc_float_of_bits(four.y), out[2] = smc_float_of_bits(four.z), out[3] = smc_float_of_bits(four.w);
  } else {
    const uint32_t four = *(const uint32_t *)(cache + place);
    for (int i = 0; i < 4; i++) out[i] = smc_float((int32_t)(int8_t)(four >> 8 * i));
  }
}

SMC_DEVICE void smc_four_to(float *shared, const float *four) {
  *(smc_words *)shared = smc_words{smc_bits_of_float(four[0]), smc_bits_of_float(four[1]), smc_bits_of_float(four[2]), smc_bits_of_float(four[3])};
}

/* N neighbouring floats of shared memory. */
template <int N> SMC_DEVICE void smc_floats_from(const float *shared, float *out) {
  if constexpr (N % 4 == 0) {
    for (int i = 0; i < N; i += 4) {
      const smc_words words = *(const smc_words *)(shared + i);
      out[i] = smc_float_of_bits(words.x), out[i + 1] = smc_float_of_bits(words.y), out[i + 2] = smc_float_of_bits(words.z), out[i + 3] = smc_float_of_bits(words.w);
    }
  } else if constexpr (N == 2) {
    const uint64_t two = *(const uint64_t *)shared;
    out[0] = smc_float_of_bits((uint32_t)two), out[1] = smc_float_of_bits((uint32_t)(two >> 32));
  } else {
    for (int i = 0; i < N; i++) out[i] = shared[i];
  }
}

/* Keys from channel `first` on; a warp has two channels. */
template <class S> SMC_DEVICE void smc_stage_keys(smc_prompt_room<S> *room, int32_t first) {
  const int32_t thread = smc_lane_anew(), channel = thread / 32 * 2, lane = thread & 31;
  const int32_t inside = lane / 16 * (16 * S::PADDED) + (first + channel) * 16 + lane % 16;
  float keys[2][2][4];
#pragma unroll
  for (int page = 0; page < 4; page++) {
    const uint8_t *place = room->pages[page];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const bool there = place && (S::DIM % SMC_CHANNELS == 0 || first + channel + i / 2 < S::DIM);
      keys[i / 2][i % 2][page] = there ? smc_cached<S>(place, inside + i / 2 * 16 + i % 2 * (32 * S::PADDED)) : 0.0f;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) smc_four_to(&room->keys[channel + i / 2][i % 2 * 128 + 4 * lane], keys[i / 2][i % 2]);
}

/* The queries of the pair from channel `first` on; each of its warps has half of the rows. */
template <class S> SMC_DEVICE void smc_stage_queries(smc_prompt_room<S> *room, int32_t first) {
  const int32_t thread = smc_lane_anew(), pair = thread / 32 % SMC_PAIRS, channel = thread % SMC_CHANNELS;
  const int32_t begin = thread / (32 * SMC_PAIRS) * 4 + thread / SMC_CHANNELS % 2;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int32_t r = pair * 8 + begin + 2 * i;
    const smc_head<S> head = {room->queried[r], room->rotations[r], room->prompt.norm, S::NORMED ? room->norms[r] : 0.0f};
    const bool there = head.x && (S::DIM % SMC_CHANNELS == 0 || first + channel < S::DIM);
    room->queries[pair][channel][begin + 2 * i] = there ? smc_mul(head(first + channel), room->prompt.scale) : 0.0f;
  }
}

/* Adds some channels' products to the first COUNT scores of each row. */
template <int COUNT, class S> SMC_DEVICE void smc_add_channels(float (*scores)[4], const smc_prompt_room<S> *room) {
  const int32_t thread = smc_lane_anew(), warp = thread / 32, place = warp / SMC_PAIRS * 128 + 4 * (thread & 31);
#pragma unroll 4
  for (int d = 0; d < SMC_CHANNELS; d++) {
    float keys[COUNT], queries[8];
    smc_floats_from<COUNT>(&room->keys[d][place], keys);
    smc_floats_from<8>(room->queries[warp % SMC_PAIRS][d], queries);
#pragma unroll
    for (int r = 0; r < smc_run_rows<S::GROUP>::ROWS; r++)
#pragma unroll
      for (int i = 0; i < COUNT; i++) scores[r][i] = smc_fma(keys[i], queries[r], scores[r][i]);
  }
}

/* scores[row][i] is of the split's token 64 * i + lane, and of the pair's second warp 32 more. */
template <class S> SMC_DEVICE void smc_prompt_scores(float (*scores)[4], smc_prompt_room<S> *room, int32_t split) {
  const smc_prompt &p = room->prompt;
#pragma unroll
  for (int i = 0; i < 32; i++) scores[i / 4][i % 4] = 0.0f;
#pragma unroll 1
  for (int32_t first = 0; first < S::DIM; first += SMC_CHANNELS) {
    smc_sync();
    smc_stage_keys<S>(room, first);
    smc_stage_queries<S>(room, first);
    smc_sync();
    if (smc_lane_of_block() / 32 % SMC_PAIRS * smc_run_rows<S::GROUP>::TOKENS >= p.count) continue;
    if (p.sees(split, 128, 256)) smc_add_channels<4>(scores, room);
    else smc_add_channels<2>(scores, room);
  }
}

/* The scale of a cached token's key (part 0) or value (64), of an int8 cache; 0 where it is not seen. */
template <class S> SMC_DEVICE float smc_prompt_scale(const smc_prompt_room<S> *room, int32_t split, int32_t token, int part) {
  const smc_prompt &p = room->prompt;
  const int32_t index = split * SMC_SPLIT + token;
  if (S::CACHE != 2 || index < p.begin || index >= p.end) return 0.0f;
  return ((const float *)room->pages[token / 64])[smc_scale_of_key<S>(0, token % 64) + part];
}

/* Scores that a row does not see are masked; then they become weights against the row's largest score of this split. */
template <class S> SMC_DEVICE void smc_prompt_softmax(float (*scores)[4], smc_prompt_room<S> *room, int32_t pass, int32_t split) {
  constexpr int ROWS = smc_run_rows<S::GROUP>::ROWS;
  const int32_t thread = smc_lane_anew(), warp = thread / 32, lane = thread & 31, half = warp / SMC_PAIRS, begin = warp % SMC_PAIRS * 8;
  const smc_prompt &p = room->prompt;
  const int32_t token = 32 * half + lane, index = split * SMC_SPLIT + token;
  float scales[4];
#pragma unroll
  for (int i = 0; i < 4; i++) scales[i] = smc_prompt_scale<S>(room, split, token + 64 * i, 0);
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const smc_prompt_row<S> row(p, pass, begin + r);
    const int32_t last = row.there ? p.index + row.token : -1, first = smc_first_seen(last, p.window);
    float maximum = SMC_LOWEST;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float score = S::CACHE == 2 ? smc_mul(scores[r][i], scales[i]) : scores[r][i];
      if (S::CAPPED) score = smc_mul(smc_tanh(score), p.cap);
      scores[r][i] = index + 64 * i <= last && index + 64 * i >= first ? score : SMC_MASKED;
      maximum = smc_max(maximum, scores[r][i]);
    }
    maximum = smc_warp_max(maximum);
    if (lane == 0) room->tops[half][begin + r] = maximum;
  }
  smc_sync();
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const float maximum = smc_max(room->tops[0][begin + r], room->tops[1][begin + r]);
#pragma unroll
    for (int i = 0; i < 4; i++) scores[r][i] = smc_exp2(smc_sub(scores[r][i], maximum));
  }
  if (thread >= smc_prompt_room<S>::ROWS) return;
  const float maximum = smc_max(room->tops[0][thread], room->tops[1][thread]), old = room->maxima[thread], now = smc_max(old, maximum);
  room->maxima[thread] = now;
  room->before[thread] = smc_exp2(smc_sub(old, now)), room->added[thread] = smc_exp2(smc_sub(maximum, now));
}

/* The weights of 64 cached tokens from `first` on are added to sums: a thread has two of a row's 16 lanes. Then the scales of values
 * go into the weights. */
template <class S> SMC_DEVICE void smc_prompt_sums(float *sums, smc_prompt_room<S> *room, int32_t split, int32_t first) {
  const int32_t thread = smc_lane_anew(), row = thread % 32, lane = thread / 32;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const int32_t token = lane + 8 * i;
    float *weight = &room->weights[token][row];
    sums[i % 2] = smc_add(sums[i % 2], *weight);
    if (S::CACHE == 2) *weight = smc_mul(*weight, smc_prompt_scale<S>(room, split, first + token, 64));
  }
}

/* Values of the split's tokens from `first` on, from channel `channel` on; what is not seen is 0. */
template <class S> SMC_DEVICE void smc_stage_values(smc_prompt_room<S> *room, int32_t split, int32_t first, int32_t channel) {
  constexpr int LANE = smc_prompt_room<S>::LANE;
  const int32_t thread = smc_lane_anew(), token = thread / 8, own = thread % 8 * 4, index = split * SMC_SPLIT + first + token;
  const uint8_t *place = room->pages[first / 64];
  const bool seen = index >= room->prompt.begin && index < room->prompt.end;
  const int32_t inside = (int32_t)smc_value_place<S>(0, first % 64 + token) + channel + own;
#pragma unroll
  for (int i = 0; i < LANE; i++) {
    float values[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (seen && (S::PADDED % (32 * LANE) == 0 || channel + 32 * i + own < S::PADDED)) smc_cached_four<S>(place, inside + 32 * i, values);
    smc_four_to(&room->values[token][32 * i + own], values);
  }
}

/* A page's weights, of which a lane has one per row, to shared memory. */
template <class S> SMC_DEVICE void smc_store_weights(float (*weights)[4], smc_prompt_room<S> *room, int page) {
  const int32_t thread = smc_lane_anew(), warp = thread / 32, token = warp / SMC_PAIRS * 32 + (thread & 31);
#pragma unroll
  for (int r = 0; r < 8; r += 4) {
    const float four[4] = {weights[r][page], weights[r + 1][page], weights[r + 2][page], weights[r + 3][page]};
    smc_four_to(&room->weights[token][warp % SMC_PAIRS * 8 + r], four);
  }
}

/* Weights times the split's values, merged into the outputs, which are in global memory: a thread has 4 rows and some channels. */
template <class S> SMC_DEVICE void smc_prompt_values(float (*weights)[4], smc_prompt_room<S> *room, int32_t pass, int32_t split, int32_t channel) {
  constexpr int LANE = smc_prompt_room<S>::LANE;
  const int32_t thread = smc_lane_anew(), warp = thread / 32, lane = thread & 31;
  const int32_t first = warp % 2 * 16 + lane / 8 * 4, own = warp / 2 * (8 * LANE) + lane % 8 * LANE;
  const smc_prompt &p = room->prompt;
  float outputs[4][LANE], sums[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < 4 * LANE; i++) outputs[i / LANE][i % LANE] = 0.0f;
#pragma unroll
  for (int page = 0; page < 4; page++) {
    if (!p.sees(split, 64 * page, 64 * page + 64)) continue;
    smc_sync();
    smc_store_weights<S>(weights, room, page);
    smc_sync();
    smc_prompt_sums<S>(sums, room, split, 64 * page);
#pragma unroll 1
    for (int part = 0; part < 2; part++) {
      if (part > 0) smc_sync();
      smc_stage_values<S>(room, split, 64 * page + SMC_VALUES * part, channel);
      smc_sync();
#pragma unroll 4
      for (int token = 0; token < SMC_VALUES; token++) {
        float values[LANE], factors[4];
        smc_floats_from<LANE>(&room->values[token][own], values);
        smc_floats_from<4>(&room->weights[SMC_VALUES * part + token][first], factors);
#pragma unroll
        for (int i = 0; i < 4 * LANE; i++) outputs[i / LANE][i % LANE] = smc_fma(values[i % LANE], factors[i / LANE], outputs[i / LANE][i % LANE]);
      }
    }
  }
  for (int i = 0; i < 2 && channel == 0; i++) {
    float *sum = &room->sums[warp + 8 * i][lane];
    *sum = smc_fma(sums[i], room->added[lane], smc_mul(*sum, room->before[lane]));
  }
#pragma unroll
  for (int r = 0; r < 4; r++) {
    const smc_prompt_row<S> row(p, pass, first + r);
    if (!row.there) continue;
    float *place = row.output(p) + channel + own;
#pragma unroll
    for (int i = 0; i < LANE; i++) {
      if (channel + own + i >= S::DIM) continue;
      const float old = split > p.first_split ? place[i] : 0.0f;
      place[i] = smc_fma(outputs[r][i], room->added[first + r], smc_mul(old, room->before[first + r]));
    }
  }
}

/* The rows have seen nothing yet. A warp has four of them. */
template <class S> SMC_DEVICE void smc_prompt_begin(smc_prompt_room<S> *room, int32_t pass) {
  const int32_t thread = smc_lane_anew(), warp = thread / 32, lane = thread & 31;
  const smc_prompt &p = room->prompt;
  for (int i = 0; i < 2; i++) room->sums[warp + 8 * i][lane] = 0.0f;
  if (warp == 0) room->maxima[lane] = SMC_LOWEST;
  for (int32_t r = 4 * warp; r < 4 * warp + 4; r++) {
    const smc_prompt_row<S> row(p, pass, r);
    const int64_t token = p.token + row.token;
    const float *x = row.there ? p.q + token * p.stride + (p.query + row.head) * S::DIM : 0;
    if (lane == 0) room->queried[r] = x, room->rotations[r] = p.rope + token * (2 * S::PAIRS);
    if (!S::NORMED || !row.there) continue;
    const float factor = smc_norm_factor([=](int32_t d) { return x[d]; }, S::DIM, S::DIM, p.eps);
    if (lane == 0) room->norms[r] = factor;
  }
}

/* Behind the last split: outputs over their sums, or what a merge of splits needs. A warp has four rows. */
template <class S> SMC_DEVICE void smc_prompt_end(const smc_prompt_room<S> *room, int32_t pass) {
  const int32_t thread = smc_lane_anew(), warp = thread / 32, lane = thread & 31;
  const smc_prompt &p = room->prompt;
  smc_sync();
  for (int32_t r = 4 * warp; r < 4 * warp + 4; r++) {
    const smc_prompt_row<S> row(p, pass, r);
    if (!row.there) continue;
    const float sum = room->sums[lane % 16][r];
    if (p.splits > 1) {
      row.state(p)[lane] = lane < 16 ? sum : room->maxima[r];
    } else {
      const float inverse = smc_inverse_sum(sum);
      float *out = row.output(p);
      for (int32_t d = lane; d < S::DIM; d += 32) out[d] = smc_mul(out[d], inverse);
    }
  }
}

/* A block is a run by a KV head by a split; by all splits where there is one. */
template <class S> SMC_KERNEL void smc_attention_of_prompt(smc_prompt_room<S> *room) {
  const smc_prompt &p = room->prompt;
#pragma unroll 1
  for (int32_t pass = 0; pass < smc_run_rows<S::GROUP>::PASSES; pass++) {
    if (pass > 0) smc_sync();
    smc_prompt_begin<S>(room, pass);
#pragma unroll 1
    for (int32_t split = p.first_split; split < p.last_split; split++) {
      const int32_t page = smc_lane_of_block();
      if (page < 4) {
        const bool seen = p.sees(split, 64 * page, 64 * page + 64);
        const int64_t begin = seen ? smc_page_begin<S>(p.tables[p.table + split * 4 + page], p.page, p.head) : 0;
        room->pages[page] = seen ? p.cache + begin * (S::CACHE == 0 ? 2 : S::CACHE == 1 ? 4 : 1) : 0;
      }
      float scores[8][4];
      smc_prompt_scores<S>(scores, room, split);
      smc_prompt_softmax<S>(scores, room, pass, split);
#pragma unroll 1
      for (int32_t channel = 0; channel < S::DIM; channel += 32 * smc_prompt_room<S>::LANE)
        smc_prompt_values<S>(scores, room, pass, split, channel);
    }
    smc_prompt_end<S>(room, pass);
  }
}

/* A block is a tile by a KV head by a split; by all splits where there is one. `run`: so many tiles from that one on. */
template <class S>
SMC_DEVICE void smc_attention(const float *q, const float *rope, const uint8_t *cache, const int32_t *tables, const struct smc_tile *tiles, float *out,
                              float *partials, int32_t stride, int64_t page, int64_t layer, float scale, int32_t window, int32_t splits, const float *norm,
                              float eps, float cap, int32_t block, int32_t run, uint8_t *memory) {
  const int32_t alone = block % splits, pair = block / splits, head = pair % S::KV_HEADS;
  const struct smc_tile tile = tiles[pair / S::KV_HEADS];
  const int32_t count = (run - 1) * SMC_TILE_TOKENS + tiles[pair / S::KV_HEADS + run - 1].count;
  if (count == 1 || count * S::GROUP <= SMC_QUERIES)
    return smc_attention_of_few<S>(q, rope, cache, tables, tiles, out, partials, stride, page, layer, scale, window, splits, norm, eps, cap, block, memory);
  const int32_t begin = smc_first_seen(tile.index, window), end = tile.index + count;
  int32_t first_split = begin / SMC_SPLIT, last_split = (end - 1) / SMC_SPLIT + 1;
  if (splits > 1) {
    if (alone < first_split || alone >= last_split) return;
    first_split = alone, last_split = alone + 1;
  }
  if (splits <= 1 && head == S::KV_HEADS - 1)
    for (int32_t t = 0; t < run; t++) smc_clear_padding(out, tiles[pair / S::KV_HEADS + t], S::HEADS * S::DIM, stride);
  smc_prompt_room<S> *room = (smc_prompt_room<S> *)memory;
  if (smc_lane_of_block() == 0)
    room->prompt = {q, rope, norm, cache, tables, out, partials, page, layer + head, tile.token, count, tile.table, tile.index, head * S::GROUP,
                    stride, window, splits, alone, begin, end, first_split, last_split, scale, eps, cap};
  smc_sync();
  smc_attention_of_prompt<S>(room);
}
