/* cpu_logprob.c - log-probabilities of given tokens, of logits / temperature over the kept tokens, and their
 * gradient. Refuses: drawing tokens (cpu_sampling.c).
 */
#include "cpu/cpu_softmax.h"

/* One row's distribution. */
typedef struct softmax_row {
    const float *z; /* [V] logits */
    int64_t V;
    float temperature;
    const uint32_t *kept; /* [n_kept] ids; n_kept 0: the whole vocabulary */
    int64_t n_kept;
} softmax_row;

static softmax_row row_of(const wb_distribution *of, const float *logits, int64_t V, int64_t t) {
    softmax_row row = {.z = logits + t * V, .V = V, .temperature = 1.0f};
    if (of && of->temperature) row.temperature = of->temperature[t];
    if (!of || !of->kept_start) return row;
    row.kept = of->kept_ids + of->kept_start[t];
    row.n_kept = of->kept_start[t + 1] - of->kept_start[t];
    return row;
}

/* The kept logits / temperature in the order of their ids, [*n_out]: in `scratch` [V], or where they are. */
static const float *scaled_logits(const softmax_row *row, float *scratch, int64_t *n_out) {
    const float *z = row->z;
    const float temperature = row->temperature;
    *n_out = row->n_kept > 0 ? row->n_kept : row->V;
    if (row->n_kept > 0) {
        for (int64_t i = 0; i < row->n_kept; i++) scratch[i] = z[row->kept[i]] / temperature;
        return scratch;
    }
    if (temperature == 1.0f) return z;
    for (int64_t i = 0; i < row->V; i++) scratch[i] = z[i] / temperature;
    return scratch;
}

static float row_logprob(const softmax_row *row, int32_t target, float *scratch) {
    int64_t n;
    const float *y = scaled_logits(row, scratch, &n);
    const float max = row_max(y, n);
    return row->z[target] / row->temperature - max - wb_logf(row_softmax_sum(y, n, max));
}

/* dz[V] (=), may be the row's logits. */
static void row_logprob_backward(const softmax_row *row, int32_t target, float dlogprob, float *scratch,
                                 float *dz) {
    int64_t n;
    const float *y = scaled_logits(row, scratch, &n);
    float *p = row->n_kept > 0 ? scratch : dz;
    const float max = row_max(y, n), d = dlogprob / row->temperature;
    const float factor = -d / row_softmax_sum(y, n, max);
    WB_INDEPENDENT
    for (int64_t i = 0; i < n; i++) p[i] = wb_expf(y[i] - max);
    if (row->n_kept > 0) {
        memset(dz, 0, (size_t)row->V * sizeof(float));
        for (int64_t i = 0; i < n; i++) dz[row->kept[i]] = p[i] * factor;
    } else {
        for (int64_t i = 0; i < n; i++) dz[i] *= factor;
    }
    dz[target] += d;
}

/* Each thread has room for a row of logits / temperature, where there can be one. */
static wb_status reserve_row(wb_device *dev, int64_t V, const wb_distribution *of) {
    return of ? wb_cpu_scratch_reserve(dev, (size_t)V * sizeof(float)) : WB_OK;
}

wb_status WB_CPU(logprob_forward)(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                  const int32_t *targets, const wb_distribution *of, float *logprobs) {
    WB_TRY(reserve_row(dev, V, of));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *V * 8))
    for (int64_t t = 0; t < T; t++) {
        const softmax_row row = row_of(of, logits, V, t);
        logprobs[t] = targets[t] < 0 ? 0.0f : row_logprob(&row, targets[t], of ? wb_cpu_scratch(dev) : NULL);
    }
    return WB_OK;
}

wb_status WB_CPU(logprob_backward)(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                   const int32_t *targets, const wb_distribution *of, const float *dlogprobs,
                                   float *dlogits) {
    WB_TRY(reserve_row(dev, V, of));
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, T *V * 8))
    for (int64_t t = 0; t < T; t++) {
        const softmax_row row = row_of(of, logits, V, t);
        float *dz = dlogits + t * V;
        if (targets[t] < 0)
            memset(dz, 0, (size_t)V * sizeof(float));
        else
            row_logprob_backward(&row, targets[t], dlogprobs[t], of ? wb_cpu_scratch(dev) : NULL, dz);
    }
    return WB_OK;
}
