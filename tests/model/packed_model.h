/* packed_model.h - a model for inference only beside one for all uses: what of it is packed, and whether both
 * compute the same bits. */
#ifndef PACKED_MODEL_H
#define PACKED_MODEL_H

#include "packed_weights.h"
#include "placed_model.h"
#include "registry.h"

enum { N_SEQS = 3, MAX_T = 36, BLOCK = 4, BLOCKS = 4 };

/* ---- what it holds ------------------------------------------------------------------------------- */

/* The definition of packing, backwards: from [rows / 16][cols][16] to rows as they lie. */
static inline void unpack_slot(uint8_t *slot, size_t size, int64_t rows, int64_t cols) {
    const size_t bytes = (size_t)(rows * cols) * size;
    uint8_t *packed = take((int64_t)bytes, 1);
    memcpy(packed, slot, bytes);
    for (int64_t n = 0; n < rows; n++)
        for (int64_t k = 0; k < cols; k++)
            memcpy(slot + (size_t)(n * cols + k) * size,
                   packed + (size_t)((n / 16 * cols + k) * 16 + n % 16) * size, size);
    free(packed);
}

/* What is looked up, or multiplied a head's or a group's rows, or half of the columns, at a time. */
static const char *const as_they_lie[] = {"embed_tokens.weight",
                                          "kv_a_proj_with_mqa.weight",
                                          "kv_b_proj.weight",
                                          "o_a_proj.weight",
                                          "eh_proj.weight",
                                          "mtp.fc.weight",
                                          "hc_fn",
                                          "attn_hc.fn",
                                          "ffn_hc.fn",
                                          "position_bias",
                                          "conv1d.weight"};

static inline const wb_tensor *tensor_of(const wb_model *m, int32_t param) {
    int32_t i = 0;
    while (m->tensors[i].param != param) i++;
    return &m->tensors[i];
}

static inline bool multiplied_as_a_whole(const wb_model *m, int32_t param) {
    char name[WB_TENSOR_NAME_BYTES];
    wb_registry_usual_name(m, tensor_of(m, param), name);
    for (size_t k = 0; k < sizeof as_they_lie / sizeof as_they_lie[0]; k++)
        if (strstr(name, as_they_lie[k])) return false;
    return true;
}

/* All matrices of whole groups of rows are packed that are multiplied as a whole, and no other weight;
 * returns how many storages of experts are, and of others. */
typedef struct counts {
    int32_t experts, others;
} counts;

static inline counts unpack(const wb_model *m) {
    counts n = {0};
    if (m->mtp) n = unpack(m->mtp);
    for (int32_t i = 0; i < m->n_params; i++) {
        const wb_param *p = &m->params[i];
        const bool of_experts = p->moe_layer >= 0;
        const int64_t rows = of_experts ? p->slot_elements / p->cols : p->rows;
        if (p->shared) continue;
        const bool expected =
            m->inference_only && p->cols > 1 && rows % 16 == 0 && multiplied_as_a_whole(m, i);
        if (p->packed != expected)
            fprintf(stderr, "%s: packed: expected %d, found %d\n", tensor_of(m, i)->name, expected,
                    p->packed);
        EXPECT(p->packed == expected);
        if (!p->packed) continue;
        const size_t size = wb_dtype_size(p->dtype);
        for (int64_t s = 0; s < (of_experts ? wb_model_local_slots(m) : 1); s++)
            unpack_slot((uint8_t *)p->memory.data + (size_t)(s * p->slot_elements) * size, size, rows,
                        p->cols);
        if (of_experts)
            n.experts++;
        else
            n.others++;
    }
    return n;
}

/* ---- what it computes ---------------------------------------------------------------------------- */

typedef struct side {
    wb_infer *infer;
    uint8_t *ids;
    const float *logits;
} side;

static inline side side_open(wb_model *model) {
    side s = {.ids = take(MAX_T, wb_route_row_bytes(wb_model_routes(model)))};
    wb_infer_options options = wb_infer_options_default();
    options.n_blocks = N_SEQS * BLOCKS;
    options.block_size = BLOCK;
    options.max_blocks = BLOCKS;
    options.max_tokens = MAX_T;
    MUST(wb_infer_open(model, &options, &s.infer));
    return s;
}

/* The next n[q] tokens of each sequence. */
static inline int64_t feed(side *s, const wb_model *model, uint64_t seed, const int32_t *n, int32_t *fed) {
    int32_t tokens[MAX_T], pos[MAX_T], seq[MAX_T], rows[MAX_T], blocks[N_SEQS * BLOCKS],
        states[N_SEQS] = {0, 1, 2}, T = 0;
    for (int32_t b = 0; b < N_SEQS * BLOCKS; b++) blocks[b] = b;
    for (int32_t q = 0; q < N_SEQS; q++)
        for (int32_t i = 0; i < n[q]; i++, T++) {
            pos[T] = fed[q] + i;
            seq[T] = q;
            rows[T] = T;
            tokens[T] = random_below(&seed, wb_model_config(model)->vocab_size);
        }
    const wb_infer_batch batch = {T, tokens, pos, seq, N_SEQS, BLOCKS, blocks, states, T, rows};
    const wb_routing routing = {.ids = s->ids};
    MUST(wb_infer_forward(s->infer, &batch, &routing, &s->logits));
    return T;
}

static inline void expect_same_steps(wb_model *model, wb_model *packed) {
    static const int32_t steps[][N_SEQS] = {{13, 5, 7}, {1, 1, 1}, {0, 9, 1}, {1, 0, 0}};
    const size_t row_bytes = wb_route_row_bytes(wb_model_routes(model)),
                 V = (size_t)wb_model_config(model)->vocab_size;
    side a = side_open(model), b = side_open(packed);
    int32_t fed[N_SEQS] = {0};
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        const int64_t T = feed(&a, model, base_seed + i, steps[i], fed);
        EXPECT(feed(&b, packed, base_seed + i, steps[i], fed) == T);
        EXPECT(memcmp(a.logits, b.logits, (size_t)T * V * sizeof(float)) == 0);
        EXPECT(memcmp(a.ids, b.ids, (size_t)T * row_bytes) == 0);
        for (int32_t q = 0; q < N_SEQS; q++) fed[q] += steps[i][q];
    }
    wb_infer_close(a.infer);
    wb_infer_close(b.infer);
    free(a.ids);
    free(b.ids);
}

#endif
