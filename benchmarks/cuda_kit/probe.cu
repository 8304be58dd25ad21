/* What a GPU is asked first. All kernels have the same parameters, and blocks of 256 threads. */

struct smc_probe {
  const int8_t *x;
  const float *x_scales;
  const int32_t *x_sums;
  const uint8_t *weights; /* of matrices, one behind the other */
  float *out;
  uint64_t matrix_bytes;
  int32_t rows, tiles;
};

SMC_ENTRY probe_empty(const void *a, void *b, uint32_t c, uint32_t d) { (void)a, (void)b, (void)c, (void)d; }

/* Reads c units of 4096 bytes, 16 at a time. */
SMC_ENTRY probe_read(const uint8_t *a, uint32_t *b, uint32_t c, uint32_t d) {
  uint32_t sum = d;
  const int64_t words = (int64_t)c * 256, step = (int64_t)smc_block_count() * SMC_THREADS;
#pragma unroll 4
  for (int64_t i = (int64_t)smc_block_index() * SMC_THREADS + smc_lane_of_block(); i < words; i += step) {
    const smc_words w = smc_load_weights(a + 16 * i);
    sum ^= w.x ^ w.y ^ w.z ^ w.w;
  }
  if (sum == 0x12345678u) smc_tell(b, sum);
}

/* c barriers of the grid. */
SMC_ENTRY probe_barriers(const void *a, struct smc_control *control, uint32_t c, uint32_t d) {
  (void)a, (void)d;
  for (uint32_t i = 1; i <= c; i++)
    if (smc_wait_for_all(control, i)) return;
}

/* Matrices c … d - 1, each behind the one before. */
SMC_ENTRY probe_multiply(const struct smc_probe *a, struct smc_control *control, uint32_t c, uint32_t d) {
  for (uint32_t i = c; i < d; i++) {
    const smc_matrix m = {a->weights + i * a->matrix_bytes, 0, 0, a->rows, a->tiles};
    const smc_output output = {0, a->out, a->rows, 0};
    for (int32_t block = smc_block_index(); block < a->rows / SMC_ROWS; block += smc_block_count()) {
      smc_sync();
      smc_multiply_integers<E_int4_g32, 1>(a->x, a->x_scales, a->x_sums, m, output, 1, a->tiles * 32, block, block + 1,
                                                 smc_shared_memory());
    }
    smc_sync();
    if (i + 1 < d && smc_wait_for_all(control, i + 1 - c)) return;
  }
}
