/* Mixtures of experts: what a router chooses, in which order the rows of experts lie, and what comes of them. */

/* By a warp: the sum of COUNT values, 32 at a time in its lanes, as vectors of 16 are added one by one and then as a tree. */
template <int COUNT> SMC_DEVICE float smc_warp_total(const float *values) {
  const int lane = smc_lane_of_block() & 31;
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    const float upper = smc_from_lane(values[i], lane ^ 16);
    total = smc_add(smc_add(total, values[i]), upper);
  }
  return smc_warp_tree(lane < 16 ? total : 0.0f);
}

/* One token's choice by a warp: the largest logits from the largest down, of equals the lower expert first. weights: exponentials
 * of their differences to the largest, over the sum of these, or of those of all experts; zeros in the padding. */
template <int EXPERTS, int CHOSEN, bool NORMALIZED>
SMC_DEVICE void smc_choose(const float *logits, float *weights, int32_t *experts) {
  constexpr int MINE = (EXPERTS + 31) / 32, KEPT = (CHOSEN + 31) / 32;
  const int lane = smc_lane_of_block() & 31;
  const float lowest = smc_float_of_bits(0xff800000u);
  float values[MINE], powers[KEPT], largest = 0.0f;
  int32_t missing = 0;
#pragma unroll
  for (int i = 0; i < MINE; i++) values[i] = lane + 32 * i < EXPERTS ? logits[lane + 32 * i] : lowest;
#pragma unroll
  for (int i = 0; i < KEPT; i++) powers[i] = 0.0f;
  for (int choice = 0; choice < CHOSEN; choice++) {
    float best = lowest;
    int32_t expert = EXPERTS;
#pragma unroll
    for (int i = 0; i < MINE; i++)
      if (values[i] > best) best = values[i], expert = lane + 32 * i;
    for (int distance = 16; distance; distance >>= 1) {
      const float other = smc_from_lane(best, lane ^ distance);
      const int32_t its = smc_from_lane(expert, lane ^ distance);
      if (other > best || (other == best && its < expert)) best = other, expert = its;
    }
#pragma unroll
    for (int i = 0; i < MINE; i++)
      if (expert == lane + 32 * i) values[i] = lowest;
    if (choice == 0) largest = best;
    if (expert == EXPERTS) expert = missing++; /* no logit is above the lowest */
    const float power = smc_exp(smc_sub(best, largest));
#pragma unroll
    for (int i = 0; i < KEPT; i++)
      if (choice == lane + 32 * i) powers[i] = power, experts[choice] = expert;
  }
  float divisor;
  if (NORMALIZED) {
    divisor = smc_warp_total<KEPT>(powers);
  } else {
#pragma unroll
    for (int i = 0; i < MINE; i++) values[i] = lane + 32 * i < EXPERTS ? smc_exp(smc_sub(logits[lane + 32 * i], largest)) : 0.0f;
    divisor = smc_warp_total<MINE>(values);
  }
#pragma unroll
  for (int i = 0; i < KEPT; i++) weights[lane + 32 * i] = smc_div(powers[i], divisor);
}

/* By a warp: the choices from begin to end - 1 come, in their order, behind those that their experts have: next says how many that
 * are. PLACE: they get their rows, and the rows their tokens. */
template <bool PLACE> SMC_DEVICE void smc_line_up(int32_t *next, int32_t *rows, int32_t *places, int32_t begin, int32_t end, int32_t chosen) {
  const int lane = smc_lane_of_block() & 31;
  for (int32_t first = begin; first < end; first += 32) {
    const int32_t choice = first + lane, expert = choice < end ? places[choice] : -1;
    int32_t before = 0, behind = 0;
    for (int other = 0; other < 32; other++) {
      const int same = smc_from_lane(expert, other) == expert;
      before += same && other < lane;
      behind += same && other > lane;
    }
    const int32_t row = expert < 0 ? 0 : next[expert] + before;
    smc_sync_warp();
    if (expert >= 0 && !behind) next[expert] = row + 1;
    smc_sync_warp();
    if (PLACE && expert >= 0) rows[row] = choice / chosen, places[choice] = row;
  }
}

/* The sum of what the lanes before have. */
SMC_DEVICE int32_t smc_warp_before(int32_t value) {
  const int lane = smc_lane_of_block() & 31;
  int32_t sum = value;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int32_t other = smc_from_lane(sum, lane - distance & 31);
    if (lane >= distance) sum += other;
  }
  return sum - value;
}

/* By a warp: how many choices every warp has of each expert becomes where their rows begin. groups: of the experts that are chosen
 * their number, first row, rows; then zeros, as many as there may be. */
template <int EXPERTS> SMC_DEVICE void smc_share_out(int32_t (*next)[EXPERTS], int32_t *groups, int32_t most) {
  const int lane = smc_lane_of_block() & 31;
  int32_t rows = 0, used = 0;
  for (int32_t first = 0; first < EXPERTS; first += 32) {
    const int32_t expert = first + lane;
    int32_t count = 0;
    for (int warp = 0; expert < EXPERTS && warp < SMC_WARPS; warp++) count += next[warp][expert];
    const int32_t begin = rows + smc_warp_before(count), group = used + smc_warp_before(count > 0);
    for (int32_t warp = 0, row = begin; expert < EXPERTS && warp < SMC_WARPS; warp++) {
      const int32_t own = next[warp][expert];
      next[warp][expert] = row;
      row += own;
    }
    if (count) groups[3 * group] = expert, groups[3 * group + 1] = begin, groups[3 * group + 2] = count;
    rows = smc_from_lane(begin + count, 31);
    used = smc_from_lane(group + (count > 0), 31);
  }
  for (int32_t i = 3 * used + lane; i < 3 * most; i += 32) groups[i] = 0;
}

/* All tokens of a step, by one block: rows of the same expert come to lie together, in the order of tokens. places: first the
 * expert of every choice, then its row. */
template <int EXPERTS, int CHOSEN, bool NORMALIZED>
SMC_DEVICE void smc_route(const float *logits, float *weights, int32_t *groups, int32_t *rows, int32_t *places, int32_t tokens, int32_t stride,
                          uint8_t *memory) {
  int32_t(*next)[EXPERTS] = (int32_t(*)[EXPERTS])memory;
  const int32_t thread = smc_lane_of_block(), warp = thread / 32, choices = tokens * CHOSEN;
  for (int32_t token = warp; token < tokens; token += SMC_WARPS)
    smc_choose<EXPERTS, CHOSEN, NORMALIZED>(logits + (int64_t)token * stride, weights + (int64_t)token * ((CHOSEN + 31) / 32 * 32), places + token * CHOSEN);
  for (int32_t i = thread; i < SMC_WARPS * EXPERTS; i += SMC_THREADS) next[i / EXPERTS][i % EXPERTS] = 0;
  smc_sync();
  const int32_t share = (choices + SMC_THREADS - 1) / SMC_THREADS * 32, begin = warp * share;
  const int32_t end = begin + share < choices ? begin + share : choices;
  smc_line_up<false>(next[warp], rows, places, begin, end, CHOSEN);
  smc_sync();
  if (warp == 0) smc_share_out<EXPERTS>(next, groups, choices < EXPERTS ? choices : EXPERTS);
  smc_sync();
  smc_line_up<true>(next[warp], rows, places, begin, end, CHOSEN);
}

/* A token's row: the weighted sum of what its experts made, one fma per choice, then plus the residual, if there is one. */
template <int CHOSEN>
SMC_DEVICE void smc_combine(const float *x, const float *weights, const int32_t *places, const float *residual, float *out, int32_t weights_stride,
                            int32_t stride, int32_t token) {
  for (int32_t column = smc_lane_of_block(); column < stride; column += SMC_THREADS) {
    float total = 0.0f;
    for (int choice = 0; choice < CHOSEN; choice++) {
      const int64_t row = places[token * CHOSEN + choice];
      total = smc_fma(x[row * stride + column], weights[(int64_t)token * weights_stride + choice], total);
    }
    if (residual) total = smc_add(total, residual[(int64_t)token * stride + column]);
    out[(int64_t)token * stride + column] = total;
  }
}
