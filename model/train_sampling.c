/* train_sampling.c - what the targets of a batch were sampled from: temperatures and kept tokens, checked,
 * and on the device for the rows that have a target. Refuses: the log-softmax over them, which is an op. */
#include "train_state.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* ---- checks -------------------------------------------------------------------------------------- */

static wb_status check_temperature(const wb_train_batch *batch, int64_t t) {
    if (!batch->temperature || batch->targets[t] < 0) return WB_OK;
    const float temperature = batch->temperature[t];
    if (temperature >= WB_MIN_TEMPERATURE && isfinite(temperature)) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "temperature of row %" PRId64
                   ": expected at least %g (a greedy sample has no gradient), found %g",
                   t, (double)WB_MIN_TEMPERATURE, (double)temperature);
}

/* The kept tokens of row t are ascending, below V, and the target is one of them. */
static wb_status check_kept_ids(const wb_train_batch *batch, int64_t t, uint32_t V) {
    const int64_t from = batch->kept_start[t], to = batch->kept_start[t + 1];
    const int32_t target = batch->targets[t];
    bool has_target = from == to;
    for (int64_t i = from; i < to; i++) {
        const uint32_t id = batch->kept_ids[i];
        if (id >= V || (i > from && id <= batch->kept_ids[i - 1]))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "kept tokens of row %" PRId64 ": expected ascending ids below %" PRIu32
                           ", found %" PRIu32,
                           t, V, id);
        has_target = has_target || (int64_t)id == target;
    }
    if (has_target) return WB_OK;
    if (target < 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "kept tokens of row %" PRId64 ": expected none without a target, found %" PRId64, t,
                       to - from);
    return wb_fail(WB_INVALID_ARGUMENT,
                   "kept tokens of row %" PRId64 ": expected the target %d among the %" PRId64
                   ", found it not",
                   t, target, to - from);
}

static wb_status check_kept(const wb_train_batch *batch, uint32_t V) {
    if (!batch->kept_start != !batch->kept_ids)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "kept tokens: expected kept_ids and kept_start, found one of them");
    if (!batch->kept_start) return WB_OK;
    if (batch->kept_start[0] != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "kept_start[0]: expected 0, found %" PRId64,
                       batch->kept_start[0]);
    for (int64_t t = 0; t < batch->T; t++) {
        if (batch->kept_start[t + 1] < batch->kept_start[t])
            return wb_fail(WB_INVALID_ARGUMENT,
                           "kept_start[%" PRId64 "]: expected at least %" PRId64 ", found %" PRId64, t + 1,
                           batch->kept_start[t], batch->kept_start[t + 1]);
        WB_TRY(check_kept_ids(batch, t, V));
    }
    return WB_OK;
}

wb_status wb_train_check_sampling(const wb_train *train, const wb_train_batch *batch) {
    for (int64_t t = 0; t < batch->T; t++) WB_TRY(check_temperature(batch, t));
    return check_kept(batch, (uint32_t)train->model->config.vocab_size);
}

/* ---- for the rows of the head -------------------------------------------------------------------- */

/* Only those of the head's rows: rows of padding may have some too, which count for nothing. */
wb_status wb_train_count_sampling(wb_train *train, const wb_train_batch *batch) {
    wb_train_inputs *in = &train->inputs;
    in->n_temperature = batch->temperature ? in->n_head : 0;
    in->n_kept_start = batch->kept_start ? in->n_head + 1 : 0;
    in->n_kept_ids = 0;
    if (!batch->kept_start) return WB_OK;
    for (int64_t t = 0; t < batch->T; t++)
        if (train->is_head[t]) in->n_kept_ids += batch->kept_start[t + 1] - batch->kept_start[t];
    if (in->n_kept_ids <= train->options.max_kept_ids) return WB_OK;
    return wb_fail(WB_CAPACITY, "batch: kept tokens (max_kept_ids): expected 0..%" PRId64 ", found %" PRId64,
                   train->options.max_kept_ids, in->n_kept_ids);
}

static void put_kept(const wb_train_inputs *in, const wb_train_batch *batch) {
    const int32_t *rows = in->head_rows.host;
    int64_t *start = in->kept_start.host;
    uint32_t *ids = in->kept_ids.host;
    start[0] = 0;
    for (int64_t i = 0; i < in->n_head; i++) {
        const int64_t from = batch->kept_start[rows[i]], count = batch->kept_start[rows[i] + 1] - from;
        if (count > 0) memcpy(ids + start[i], batch->kept_ids + from, (size_t)count * sizeof *ids);
        start[i + 1] = start[i] + count;
    }
}

void wb_train_put_sampling(wb_train *train, const wb_train_batch *batch) {
    const wb_train_inputs *in = &train->inputs;
    const int32_t *rows = in->head_rows.host;
    float *temperature = in->temperature.host;
    for (int64_t i = 0; i < in->n_temperature; i++) temperature[i] = batch->temperature[rows[i]];
    if (in->n_kept_start > 0) put_kept(in, batch);
}

bool wb_train_distribution(const wb_train *train, int64_t start, wb_distribution *distribution_out) {
    const wb_train_inputs *in = &train->inputs;
    const bool has_kept = in->n_kept_start > 0, has_temperature = in->n_temperature > 0;
    wb_distribution of = {0};
    if (has_temperature) of.temperature = (const float *)in->temperature.device + start;
    if (has_kept) {
        of.kept_ids = in->kept_ids.device;
        of.kept_start = (const int64_t *)in->kept_start.device + start;
    }
    *distribution_out = of;
    return has_temperature || has_kept;
}
