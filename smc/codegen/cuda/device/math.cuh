/* Functions of docs/numerics.md, operation by operation. */

#define SMC_LOG2_E 1.4426950408889634f
#define SMC_ROUNDER 12582912.0f /* 1.5 * 2^23: added to a small float, it leaves the nearest integer in the low bits */

SMC_DEVICE float smc_power_polynomial(float r) {
  float p = 0.0013269521296024323f;
  p = smc_fma(p, r, 0.009671291336417198f);
  p = smc_fma(p, r, 0.0555071085691452f);
  p = smc_fma(p, r, 0.24022246897220612f);
  return smc_fma(p, r, 0.6931470036506653f);
}

/* 2^n * 2^r: n are the low bits of `shifted`. */
SMC_DEVICE float smc_power(float shifted, float r) {
  const float p = smc_fma(smc_power_polynomial(r), r, 1.0f);
  return smc_float_of_bits(smc_bits_of_float(p) + (smc_bits_of_float(shifted) << 23));
}

SMC_DEVICE float smc_exp2(float x) {
  x = smc_max(x, -127.0f);
  const float shifted = smc_add(x, SMC_ROUNDER);
  return smc_power(shifted, smc_add(x, smc_sub(SMC_ROUNDER, shifted)));
}

SMC_DEVICE float smc_exp(float x) {
  x = smc_max(smc_min(x, 88.0f), -87.0f);
  const float shifted = smc_fma(x, SMC_LOG2_E, SMC_ROUNDER);
  return smc_power(shifted, smc_fma(x, SMC_LOG2_E, smc_sub(SMC_ROUNDER, shifted)));
}

SMC_DEVICE float smc_tanh(float x) {
  const float twice = 2.8853900817779268f;
  x = smc_max(smc_min(x, 10.0f), -10.0f);
  const float shifted = smc_fma(x, twice, SMC_ROUNDER);
  const float r = smc_fma(x, twice, smc_sub(SMC_ROUNDER, shifted));
  const float power = smc_float_of_bits(0x3f800000u + (smc_bits_of_float(shifted) << 23));
  const float less = smc_fma(power, smc_mul(smc_power_polynomial(r), r), smc_sub(power, 1.0f));
  return smc_div(less, smc_add(less, 2.0f));
}

SMC_DEVICE float smc_softcap(float x, float cap) { return smc_mul(smc_tanh(smc_mul(x, smc_div(1.0f, cap))), cap); }

/* The scale of int8 codes whose largest magnitude is amax, and its inverse. */
SMC_DEVICE float smc_scale_of(float amax) { return smc_div(amax, 127.0f); }
SMC_DEVICE float smc_inverse_of(float amax) { return amax > 1e-30f ? smc_div(127.0f, amax) : 0.0f; }

/* ---- a warp together: every lane gets the result */

SMC_DEVICE float smc_warp_max(float value) {
  const int lane = smc_lane_of_block() & 31;
  for (int distance = 16; distance; distance >>= 1) value = smc_max(value, smc_from_lane(value, lane ^ distance));
  return value;
}

/* Of each half of the lanes, or of all 32. */
SMC_DEVICE int32_t smc_warp_sum(int32_t value, int width) {
  const int lane = smc_lane_of_block() & 31;
  for (int distance = width / 2; distance; distance >>= 1) value += smc_from_lane(value, lane ^ distance);
  return value;
}

/* Two vectors of 16 lanes, one after the other in a warp, added up and then as a tree. */
SMC_DEVICE float smc_warp_tree(float value) {
  const int lane = smc_lane_of_block() & 31;
  for (int distance = 16; distance; distance >>= 1) value = smc_add(value, smc_from_lane(value, lane ^ distance));
  return value;
}
