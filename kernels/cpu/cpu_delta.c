/* cpu_delta.c - the gated delta rule: a task has one value head of a run, and goes from token to token.
 *
 * The state lies where it is kept, or in scratch where it is of no use later. Refuses: gradients
 * (cpu_delta_back.c). */
#include "cpu/cpu_delta.h"
#include "recurrent_check.h"

/* Of a thread: a state, a query and a key, a value and an output. */
size_t WB_CPU(delta_forward_bytes)(wb_delta_heads h) {
    return (size_t)((int64_t)h.key_dim * h.value_dim + 2 * h.key_dim + 2 * h.value_dim) * sizeof(float);
}

static void forward_token(const wb_gated_delta *a, int64_t t, int64_t head, const delta_keys *keys, float *v,
                          float *out, float *state) {
    const int64_t dim = a->heads.key_dim, n = a->heads.value_dim;
    const delta_gates gates = delta_load_gates(a, t, head);
    rows_load(a->qkv, wb_delta_value_at(a->heads, t, head), n, v);
    for (int64_t j = 0; j < n; j++) {
        float *row = state + j * dim;
        const float error = v[j] - delta_fade(dim, gates.decay, keys->k, row, row);
        out[j] = delta_learn(dim, gates.beta * error, keys->k, keys->q, row);
    }
}

static void forward_head(const wb_gated_delta *a, const wb_sequence_run *run, int64_t head, float *scratch,
                         wb_rows o) {
    const wb_delta_heads h = a->heads;
    const int64_t size = (int64_t)h.key_dim * h.value_dim;
    float *kept = run_state(&a->of, run), *state = kept ? kept + wb_delta_state_at(h, head, 0) : scratch;
    delta_keys keys = {.q = scratch + size, .k = scratch + size + h.key_dim};
    float *v = keys.k + h.key_dim, *out = v + h.value_dim;
    if (!kept) memset(state, 0, (size_t)size * sizeof *state);
    for (int64_t t = run->start; t < run->start + run->n; t++) {
        if (a->checkpoints && !kept && t % WB_DELTA_CHUNK == 0)
            memcpy(a->checkpoints + (t / WB_DELTA_CHUNK * h.n_value + head) * size, state,
                   (size_t)size * sizeof *state);
        delta_load_keys(a, t, head / (h.n_value / h.n_key), &keys);
        forward_token(a, t, head, &keys, v, out, state);
        rows_store(h.value_dim, out, o, (t * h.n_value + head) * h.value_dim);
    }
}

wb_status WB_CPU(gated_delta_forward)(wb_device *dev, const wb_gated_delta *args, wb_rows o) {
    WB_TRY(gated_delta_check("gated_delta_forward", args));
    WB_TRY(operand_check_like("gated_delta_forward", "o", o.dtype, "qkv", args->qkv.dtype));
    WB_TRY(wb_cpu_scratch_reserve(dev, WB_CPU(delta_forward_bytes)(args->heads)));
    const wb_sequences *of = &args->of;
    const int64_t n = args->heads.n_value, work = of->T * n * args->heads.key_dim * args->heads.value_dim;
    clear_padding(of, o, n * args->heads.value_dim);
#pragma omp parallel for schedule(dynamic) num_threads(wb_cpu_threads(dev, work))
    for (int64_t task = 0; task < of->n_runs * n; task++) {
        const wb_sequence_run *run = of->runs + task / n;
        if (run->n > 0) forward_head(args, run, task % n, wb_cpu_scratch(dev), o);
    }
    return WB_OK;
}
