/* compress_rules.h - the softmax of one channel of a compressed entry as a chain over positions, and where
 * its gates and its state lie (not installed): what both backends share. */
#ifndef WB_COMPRESS_RULES_H
#define WB_COMPRESS_RULES_H

#include "wb_exact_math.h"
#include "wb_ops_entries.h"

/* Of the positions so far: the largest gate, and with weights exp(gate - largest) their sum and that of the
 * values. Zeros: no position yet, since a sum with one is 1 at least. */
typedef struct compress_sum {
    float largest, weights, values;
} compress_sum;

/* Goes on by a position. Only one of the two exponents is not 0. */
static WB_HD compress_sum compress_add(compress_sum so_far, float gate, float value) {
    const bool first = so_far.weights == 0.0f, renews = first || gate > so_far.largest;
    const float difference = wb_sub(renews ? so_far.largest : gate, renews ? gate : so_far.largest);
    const float decay = wb_expf(difference);
    const float before = first ? 0.0f : renews ? decay : 1.0f, weight = renews ? 1.0f : decay;
    compress_sum sum;
    sum.largest = renews ? gate : so_far.largest;
    sum.weights = wb_fma(so_far.weights, before, weight);
    sum.values = wb_fma(so_far.values, before, wb_mul(weight, value));
    return sum;
}

static WB_HD float compress_entry(compress_sum sum) {
    return wb_div(sum.values, sum.weights);
}

/* The gradients of one position's gate and value from d, that of the entry. */
static WB_HD void compress_gradient(compress_sum sum, float entry, float gate, float value, float d,
                                    float *dgate, float *dvalue) {
    const float p = wb_div(wb_expf(wb_sub(gate, sum.largest)), sum.weights);
    *dvalue = wb_mul(p, d);
    *dgate = wb_mul(*dvalue, wb_sub(value, entry));
}

/* Channels of a row of values, gates and bias. */
static WB_HD int64_t compress_channels(const wb_compress *args) {
    return args->overlaps ? 2 * args->width : args->width;
}

/* The channel of a position for channel d of an entry: of its own one, or of the one behind it, which it
 * comes ahead of. */
static WB_HD int64_t compress_channel(const wb_compress *args, bool is_own, int64_t d) {
    return args->overlaps && is_own ? args->width + d : d;
}

/* Floats of a state before channel d of a row, in the order of compress_sum, of entry number `of`: 0, the one
 * that is to end next, or the one behind it. */
static WB_HD int64_t compress_state_at(const wb_compress *args, int of, int row, int64_t d) {
    return (3 * of + row) * args->width + d;
}

#endif
