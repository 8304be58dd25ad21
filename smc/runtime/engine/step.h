/* The tables of a step, which the engine writes and kernels read: on CPUs where they are, on GPUs a copy of them. So
 * nothing is included here, and the text of a program for GPUs has it as it is. */
#ifndef SMC_STEP_H
#define SMC_STEP_H

/* Tokens of one sequence that attention handles together: count <= SMC_TILE_TOKENS. */
#define SMC_TILE_TOKENS 8
struct smc_tile {
  int32_t token; /* first token of the tile, an index into the step */
  int32_t count;
  int32_t table; /* where the sequence's block table begins in the tables of each group */
  int32_t index; /* cache index of the first token; the tile sees all indices up to each token's own */
};

/* The largest logits of a token among those whose id is a lane's number modulo 16; the lower id among equals. */
#define SMC_ARGMAX_LANES 16
struct smc_argmax {
  float logits[SMC_ARGMAX_LANES]; /* -infinity: none */
  int32_t ids[SMC_ARGMAX_LANES];
};

/* The pages of a group of layers: page p begins at data + p * page_bytes. In it, for every layer of the group and KV
 * head: K [SMC_PAGE_TOKENS / 16][head_dim_padded][16 tokens], then V [SMC_PAGE_TOKENS][head_dim_padded], then for
 * SMC_KV_I8 the float scales of K [SMC_PAGE_TOKENS] and of V [SMC_PAGE_TOKENS]. */
struct smc_kv_pages {
  uint8_t *data;
  uint64_t page_bytes;
  const int32_t *tables; /* block tables: the page of each SMC_PAGE_TOKENS tokens of a sequence */
  const int32_t *slots;  /* [count] page * SMC_PAGE_TOKENS + place in the page, where K and V of the step are written */
};

struct smc_step {
  int32_t count;            /* tokens, 1 … max_step_tokens */
  int32_t kv_dtype;         /* smc_kv_dtype */
  const int32_t *tokens;    /* [count] ids, checked */
  const int32_t *positions; /* [count] below `positions` of the program, where it has a table of them */
  const float *rope;        /* for each table [count][2][pairs]: cosines, then sines */
  int32_t tile_count;
  const struct smc_tile *tiles;
  const struct smc_kv_pages *kv; /* [kv_group_count] */
  int32_t alone;                 /* every tile is the only one of its sequence: it reads no K and V of another's */
  int32_t splits;                /* the number of blocks into which attention splits what a tile sees */
  float *partials;               /* [count][splits], of partial_bytes: a token's splits until they are merged */
  int32_t wanted_count;
  /* [wanted_count] the tokens of the step whose output was requested: the others end with their K and V of the last
   * layer, and the last block leaves the rows of these, one after the other */
  const int32_t *wanted_tokens;
  int32_t wanted_tile_count;
  /* the tiles that have any of these; all tiles where a tile may write what it reads (alone, one split) */
  const struct smc_tile *wanted_tiles;
  int32_t wanted_begin, wanted_end; /* the tokens from the first to the last of these tiles, in whole blocks of 8 */
  int32_t logits_count;
  const int32_t *logits_tokens; /* [logits_count] indices, among the requested tokens, of those that need logits */
  float *logits;                /* [logits_count][logits_stride], 64-byte aligned */
  int32_t argmax_count;
  const int32_t *argmax_tokens; /* [argmax_count] … that need the largest logit's id only */
  struct smc_argmax *argmaxes;  /* [threads][argmax_count] what every thread has found; nothing when the step begins */
  const uint8_t *weights;       /* the weights member, 64-KiB aligned */
  int32_t prefetch_distance;    /* how many bytes ahead matmuls of a few tokens prefetch their codes; 0: they don't */
  uint8_t *arena;               /* 64-byte aligned */
  int32_t *beyond;              /* 0 when the step begins, 1 if a key or a value is beyond the cache's range */
  const void *kernels;          /* of the level in use */
};

#endif
