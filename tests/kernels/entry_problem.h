/* entry_problem.h - sequences whose rows and compressed entries lie in shuffled pools, for the tests of
 * attention over entries and of indexers on either backend. */
#ifndef WB_ENTRY_PROBLEM_H
#define WB_ENTRY_PROBLEM_H

#include "entry_rules.h"
#include "ops_test.h"

enum { ENTRY_SEQS = 3 };

typedef struct entry_shape {
    int32_t n_heads, head_dim, block_size, window, ratio;
    int64_t longest;
    /* of lists; 0: none */
    int32_t most_listed;
    bool sinks;
} entry_shape;

/* x: q [T, n_heads * head_dim], k [pool rows, head_dim], entries [entry rows, stride], sinks [n_heads]. */
typedef struct entry_problem {
    entry_shape s;
    int64_t T, pool_rows, entry_rows, stride, n;
    int64_t k, entries, sinks; /* where they begin in x */
    int32_t max_blocks, *seq, *pos, *blocks, *listed;
    float *x;
    wb_entry_attention args;
} entry_problem;

/* A token's list: each entry that it sees with probability 1/2, at most as many as there is room for. */
static inline void list_entries(const entry_shape *s, int32_t pos, int32_t *list) {
    int32_t count = 0;
    for (int32_t w = 0; w < entries_seen(s->ratio, pos); w++)
        if (count < s->most_listed && rng_next() % 2 == 0) list[count++] = w;
    for (; count < s->most_listed; count++) list[count] = -1;
}

static inline void place_entry_rows(entry_problem *p) {
    const entry_shape *s = &p->s;
    const int64_t n_blocks = ENTRY_SEQS * p->max_blocks;
    const int32_t ratio = s->ratio > 0 ? s->ratio : 1;
    p->pool_rows = n_blocks * s->block_size;
    p->entry_rows = n_blocks * ((s->block_size + ratio - 1) / ratio);
    p->stride = s->head_dim + 3;
    p->k = p->T * s->n_heads * s->head_dim;
    p->entries = p->k + p->pool_rows * s->head_dim;
    p->sinks = p->entries + p->entry_rows * p->stride;
    p->n = p->sinks + s->n_heads;
    p->x = random_floats(p->n, -1, 1);
}

static inline wb_entry_attention entry_args(const entry_problem *p) {
    const entry_shape *s = &p->s;
    const wb_rows k = wb_f32_rows(p->x + p->k);
    return (wb_entry_attention){.raw = {.T = p->T,
                                        .n_heads = s->n_heads,
                                        .n_kv_heads = 1,
                                        .head_dim = s->head_dim,
                                        .value_dim = s->head_dim,
                                        .scale = 2.0f / sqrtf((float)s->head_dim),
                                        .window = s->window,
                                        .sinks = s->sinks ? p->x + p->sinks : NULL,
                                        .q = wb_f32_rows(p->x),
                                        .k = k,
                                        .v = k,
                                        .seq = p->seq,
                                        .pos = p->pos,
                                        .blocks = p->blocks,
                                        .max_blocks = p->max_blocks,
                                        .block_size = s->block_size},
                                .entries = {s->ratio, wb_f32_rows(p->x + p->entries), p->stride},
                                .listed = p->listed,
                                .max_listed = s->most_listed};
}

/* Whole sequences, and a row of padding behind the second one. */
static inline void open_entry_problem(entry_problem *p, entry_shape s) {
    int32_t lengths[ENTRY_SEQS];
    *p = (entry_problem){
        .s = s, .max_blocks = (int32_t)((s.longest + s.block_size - 1) / s.block_size), .T = 1};
    for (int i = 0; i < ENTRY_SEQS; i++)
        p->T += lengths[i] = i == 0 ? (int32_t)s.longest : (int32_t)rng_range(1, s.longest);
    p->seq = xalloc(p->T, 4), p->pos = xalloc(p->T, 4), p->blocks = xalloc(ENTRY_SEQS * p->max_blocks, 4);
    for (int32_t i = 0; i < ENTRY_SEQS * p->max_blocks; i++) {
        const int64_t j = rng_range(0, i);
        p->blocks[i] = p->blocks[j], p->blocks[j] = i;
    }
    int64_t t = 0;
    for (int32_t i = 0; i < ENTRY_SEQS; i++) {
        for (int32_t j = 0; j < lengths[i]; j++, t++) p->seq[t] = i, p->pos[t] = j;
        if (i == 1) p->seq[t++] = -1;
    }
    if (s.most_listed > 0) p->listed = xalloc(p->T * s.most_listed, 4);
    for (t = 0; t < p->T && p->listed; t++) list_entries(&s, p->pos[t], p->listed + t * s.most_listed);
    place_entry_rows(p);
    p->args = entry_args(p);
}

static inline void close_entry_problem(entry_problem *p) {
    free(p->seq), free(p->pos), free(p->blocks), free(p->listed), free(p->x);
}

/* Elements of x at which the keys of token t begin, and how many: at[] has room for them all. */
static inline int64_t keys_of_token(const entry_problem *p, int64_t t, int64_t *at) {
    const entry_shape *s = &p->s;
    const int32_t *blocks = p->blocks + p->seq[t] * p->max_blocks;
    int64_t n = 0;
    for (int32_t j = 0; j <= p->pos[t]; j++)
        if (s->window == 0 || j > p->pos[t] - s->window)
            at[n++] =
                p->k + (blocks[j / s->block_size] * (int64_t)s->block_size + j % s->block_size) * s->head_dim;
    for (int32_t w = 0; s->ratio > 0 && (w + 1) * s->ratio <= p->pos[t] + 1; w++) {
        const int32_t last = w * s->ratio + s->ratio - 1,
                      of_block = (s->block_size + s->ratio - 1) / s->ratio;
        bool sees = s->most_listed == 0;
        for (int32_t i = 0; i < s->most_listed; i++) sees = sees || p->listed[t * s->most_listed + i] == w;
        if (sees)
            at[n++] = p->entries +
                      (blocks[last / s->block_size] * (int64_t)of_block + last % s->block_size / s->ratio) *
                          p->stride;
    }
    return n;
}

#endif
