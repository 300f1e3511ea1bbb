/* route_compare.c - what two sets of experts have in common, and two log-probabilities of a token. Owns: the
 * comparison of ids in any order. Refuses: sums and means (who asks adds up). */
#include "wb_formats.h"

#include <math.h>
#include <string.h>

/* Ids of 8 bits: a set of 256 bits. */
static uint32_t common_u8(const uint8_t *a, const uint8_t *b, uint32_t K) {
    uint64_t set[4] = {0};
    uint32_t n = 0;
    for (uint32_t k = 0; k < K; k++) set[b[k] / 64] |= (uint64_t)1 << b[k] % 64;
    for (uint32_t k = 0; k < K; k++) n += set[a[k] / 64] >> a[k] % 64 & 1;
    return n;
}

/* Ids of 16 bits: emptying a set of 65,536 bits takes longer than comparing few ids with each other. */
enum { FEW = 32 };

static uint32_t common_u16(const void *a, const void *b, uint32_t K) {
    uint64_t set[65536 / 64];
    uint32_t n = 0;
    if (K > FEW) {
        memset(set, 0, sizeof set);
        for (uint32_t k = 0; k < K; k++) {
            const uint32_t id = wb_route_id(b, WB_U16, k);
            set[id / 64] |= (uint64_t)1 << id % 64;
        }
    }
    for (uint32_t k = 0; k < K; k++) {
        const uint32_t id = wb_route_id(a, WB_U16, k);
        bool found = K > FEW && (set[id / 64] >> id % 64 & 1) != 0;
        for (uint32_t j = 0; j < K && K <= FEW; j++) found |= wb_route_id(b, WB_U16, j) == id;
        n += found;
    }
    return n;
}

uint32_t wb_route_common(const void *a, const void *b, wb_dtype dtype, uint32_t K) {
    if (memcmp(a, b, K * wb_dtype_size(dtype)) == 0) return K;
    return dtype == WB_U8 ? common_u8(a, b, K) : common_u16(a, b, K);
}

/* Whether any two rows are of the same experts is most often told by the first id. */
bool wb_route_same_experts(const void *a, const void *b, wb_dtype dtype, uint32_t K) {
    if (dtype == WB_U8 && !memchr(b, *(const uint8_t *)a, K)) return false;
    return wb_route_common(a, b, dtype, K) == K;
}

uint64_t wb_record_count_repeats(const wb_route_model *model, const wb_record *record, uint64_t *repeats) {
    const uint32_t L = model->n_moe_layers;
    const wb_dtype dtype = wb_route_dtype(model->num_experts);
    const uint8_t *before = NULL;
    uint32_t position_before = 0;
    uint64_t pairs = 0;
    for (wb_row_walk walk = wb_rows_of(model, record); wb_row_next(&walk);) {
        const uint8_t *row = walk.row;
        if (before && walk.position == position_before + 1) {
            size_t at = 0;
            pairs++;
            for (uint32_t l = 0; l < L; l++) {
                const uint32_t K = wb_route_layer_k(model, l);
                repeats[l] += wb_route_same_experts(before + at, row + at, dtype, K);
                at += K * wb_dtype_size(dtype);
            }
        }
        before = row;
        position_before = walk.position;
    }
    return pairs;
}

wb_kl_terms wb_kl_of_token(float sampled_logprob, float other_logprob) {
    const double log_r = (double)sampled_logprob - (double)other_logprob, ratio = exp(-log_r);
    return (wb_kl_terms){
        .k1 = log_r, .k3 = ratio - 1 + log_r, .outside = !(ratio >= 0.5 && ratio <= 2), /* NaN is outside */
    };
}
