/* sample_rules.h - what both backends ask of the parameters of a draw, in the same words.
 *
 * Owns: the check of a call's host arrays, and the sizes that are part of the order of sums. Refuses:
 * drawing. */
#ifndef WB_SAMPLE_RULES_H
#define WB_SAMPLE_RULES_H

#include "wb_check.h"
#include "wb_host_device.h"
#include "wb_ops_sampling.h"

#include <inttypes.h>
#include <math.h>

/* The sum of a row's exponentials is made of parts of SOFTMAX_PART tokens, so that a row's parts can be made
 * at once wherever it is computed. A part's exponentials are those of the differences to its own largest
 * token, and are summed in lanes; the parts' sums, each times exp(its largest - the row's largest), are
 * summed in lanes again, part i in lane i mod 16. Parts are of the length alone: a row's sum does not depend
 * on the rows beside it, and one of a single part is the plain sum in lanes.
 *
 * To draw from all tokens, each part's exponentials are summed over blocks of DRAW_BLOCK tokens, then over
 * its blocks, and then, scaled in the same way, over the parts. */
enum { SOFTMAX_PART = 2048, DRAW_BLOCK = 128, DRAW_BLOCKS = SOFTMAX_PART / DRAW_BLOCK };

/* What is taken from the elements of a part before they become exponentials: its largest, but 0 for a part of
 * -inf alone, whose differences would be NaN. */
static WB_HD float softmax_origin(float largest) {
    return largest == -INFINITY ? 0.0f : largest;
}

static inline wb_status wb_sample_check_params(int64_t row, const wb_sample_params *params) {
    if (!(params->temperature >= 0.0f && params->temperature < INFINITY))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "sample: row %" PRId64 ": temperature: expected 0 or more, found %g", row,
                       (double)params->temperature);
    if (params->top_k < 0)
        return wb_fail(WB_INVALID_ARGUMENT, "sample: row %" PRId64 ": top_k: expected 0 or more, found %d",
                       row, params->top_k);
    if (!(params->top_p > 0.0f && params->top_p <= 1.0f))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "sample: row %" PRId64 ": top_p: expected 0 < top_p <= 1, found %g", row,
                       (double)params->top_p);
    if (!(params->uniform >= 0.0f && params->uniform < 1.0f))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "sample: row %" PRId64 ": uniform: expected 0 <= uniform < 1, found %g", row,
                       (double)params->uniform);
    return WB_OK;
}

static inline wb_status wb_sample_check_room(int64_t row, int64_t room, int64_t needed) {
    if (room == 0 || room >= needed) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "sample: row %" PRId64 ": expected room for %" PRId64 " kept tokens, found %" PRId64, row,
                   needed, room);
}

/* INVALID_ARGUMENT names the first row whose parameters are none, or that has too little room. */
static inline wb_status wb_sample_check(int64_t B, int64_t V, const wb_sample_params *params,
                                        const wb_sample_kept *kept) {
    if (V < 1 || V > INT32_MAX)
        return wb_fail(WB_INVALID_ARGUMENT, "sample: vocabulary: expected 1..2^31-1, found %" PRId64, V);
    for (int64_t b = 0; b < B; b++) {
        WB_TRY(wb_sample_check_params(b, params + b));
        if (kept)
            WB_TRY(wb_sample_check_room(b, kept->start[b + 1] - kept->start[b],
                                        wb_sample_max_kept(params + b, V)));
    }
    return WB_OK;
}

#endif
