/* cpu_delta_back.c - the gradients of the gated delta rule: a task has one key head of a run, with its value
 * heads, and goes back from chunk to chunk, and in a chunk from token to token.
 *
 * The states of a chunk's tokens are computed again, from the forward's checkpoint on. Refuses: the rule
 * itself (cpu_delta.h). */
#include "cpu/cpu_delta.h"
#include "recurrent_check.h"

/* A chunk of a run, and what a task works with. */
typedef struct chunk {
    const wb_gated_delta *args;
    wb_rows dout, dqkv, db;
    float *dg;                         /* [T, n_value] out */
    int64_t first, n;                  /* the tokens [first, first + n) */
    delta_keys keys[WB_DELTA_CHUNK];   /* of each token */
    delta_gates gates[WB_DELTA_CHUNK]; /* likewise, of one value head, as are the next two */
    float *states;                     /* S^T before each token, and behind the last one */
    float *errors;                     /* [value_dim] of each token: v - m, m being what S' gives for k */
    float *dstates;                    /* of each value head: the gradient of S^T behind the next token */
    float *dq, *dk;                    /* [key_dim] of each token: sums over the value heads so far */
    float *lanes_q, *lanes_k;          /* [WB_LANES][key_dim] a token's sums over its values */
    float *d, *dd, *dgs; /* [value_dim] of a token: gradients of o, then v; of d; parts of that of g */
} chunk;

static float *take(float *memory, int64_t *used, int64_t n) {
    *used += n;
    return memory ? memory + (*used - n) : NULL;
}

/* Places the arrays from `memory` on, or nowhere where that is NULL; how many f32 they are. */
static int64_t lay_out(chunk *c, wb_delta_heads h, float *memory) {
    const int64_t size = (int64_t)h.key_dim * h.value_dim, tokens = WB_DELTA_CHUNK;
    int64_t used = 0;
    c->states = take(memory, &used, (tokens + 1) * size);
    c->errors = take(memory, &used, tokens * h.value_dim);
    c->dstates = take(memory, &used, h.n_value / h.n_key * size);
    c->dq = take(memory, &used, tokens * h.key_dim), c->dk = take(memory, &used, tokens * h.key_dim);
    c->lanes_q = take(memory, &used, 2 * (int64_t)WB_LANES * h.key_dim);
    c->lanes_k = c->lanes_q ? c->lanes_q + (int64_t)WB_LANES * h.key_dim : NULL;
    c->d = take(memory, &used, h.value_dim), c->dd = take(memory, &used, h.value_dim);
    c->dgs = take(memory, &used, h.value_dim);
    for (int i = 0; i < WB_DELTA_CHUNK; i++) {
        c->keys[i].q = take(memory, &used, h.key_dim);
        c->keys[i].k = take(memory, &used, h.key_dim);
    }
    return used;
}

size_t WB_CPU(delta_backward_bytes)(wb_delta_heads heads) {
    chunk c;
    return (size_t)lay_out(&c, heads, NULL) * sizeof(float);
}

/* Fills gates, states and errors for a value head. */
static void compute_again(chunk *c, const wb_sequence_run *run, int64_t head) {
    const wb_gated_delta *a = c->args;
    const int64_t dim = a->heads.key_dim, n = a->heads.value_dim, size = dim * n;
    if (c->first > run->start)
        memcpy(c->states, a->checkpoints + (c->first / WB_DELTA_CHUNK * a->heads.n_value + head) * size,
               (size_t)size * sizeof(float));
    else
        memset(c->states, 0, (size_t)size * sizeof(float));
    for (int64_t i = 0; i < c->n; i++) {
        const float *before = c->states + i * size;
        c->gates[i] = delta_load_gates(a, c->first + i, head);
        rows_load(a->qkv, wb_delta_value_at(a->heads, c->first + i, head), n, c->d);
        for (int64_t j = 0; j < n; j++) {
            float *behind = c->states + (i + 1) * size + j * dim, *error = &c->errors[i * n + j];
            *error = c->d[j] - delta_fade(dim, c->gates[i].decay, c->keys[i].k, before + j * dim, behind);
            delta_learn(dim, c->gates[i].beta * *error, c->keys[i].k, c->keys[i].q, behind);
        }
    }
}

/* Rows of a value's sums: dq += behind dout, ds += q dout. Returns the product of ds and k. */
static float backward_output(int64_t dim, float dout, const float *q, const float *k, const float *behind,
                             float *dq, float *ds) {
    const lanes all = lanes_set(dout);
    lanes acc = lanes_set(0.0f);
    int64_t i = 0;
    for (; i + WB_LANES <= dim; i += WB_LANES) {
        const lanes to = lanes_fma(lanes_load(q + i), all, lanes_load(ds + i));
        lanes_store(ds + i, to);
        lanes_store(dq + i, lanes_fma(lanes_load(behind + i), all, lanes_load(dq + i)));
        acc = lanes_fma(to, lanes_load(k + i), acc);
    }
    for (int64_t rest = i; rest < dim; rest++) {
        dq[rest] = fmaf(behind[rest], dout, dq[rest]);
        ds[rest] = fmaf(q[rest], dout, ds[rest]);
    }
    return lanes_sum_rest(acc, ds + i, k + i, dim - i);
}

/* dk += ds d + faded dm, faded being decay * before; then ds (=) decay (ds + k dm). Returns the product of
 * ds + k dm and faded. */
static float backward_state(int64_t dim, float decay, float d, float dm, const float *k, const float *before,
                            float *dk, float *ds) {
    const lanes decays = lanes_set(decay), ds_all = lanes_set(d), dms = lanes_set(dm);
    lanes acc = lanes_set(0.0f);
    float faded[WB_LANES], behind[WB_LANES];
    int64_t i = 0;
    for (; i + WB_LANES <= dim; i += WB_LANES) {
        const lanes from = lanes_mul(decays, lanes_load(before + i)), to = lanes_load(ds + i);
        lanes_store(dk + i, lanes_fma(from, dms, lanes_fma(to, ds_all, lanes_load(dk + i))));
        const lanes learnt = lanes_fma(lanes_load(k + i), dms, to);
        acc = lanes_fma(learnt, from, acc);
        lanes_store(ds + i, lanes_mul(learnt, decays));
    }
    for (int64_t rest = i; rest < dim; rest++) {
        faded[rest - i] = decay * before[rest];
        dk[rest] = fmaf(faded[rest - i], dm, fmaf(ds[rest], d, dk[rest]));
        behind[rest - i] = fmaf(k[rest], dm, ds[rest]);
        ds[rest] = behind[rest - i] * decay;
    }
    return lanes_sum_rest(acc, behind, faded, dim - i);
}

/* Value j of token i: ds, a row of the gradient of S^T, from behind the token to before it. */
static void backward_value(chunk *c, int64_t i, int64_t j, float *ds) {
    const int64_t dim = c->args->heads.key_dim, n = c->args->heads.value_dim, lane = j % WB_LANES * dim;
    const float *before = c->states + (i * n + j) * dim, *behind = before + n * dim;
    const float *q = c->keys[i].q, *k = c->keys[i].k, decay = c->gates[i].decay, beta = c->gates[i].beta;
    const float dd = backward_output(dim, c->d[j], q, k, behind, c->lanes_q + lane, ds), dv = beta * dd;
    c->dgs[j] =
        backward_state(dim, decay, beta * c->errors[i * n + j], -dv, k, before, c->lanes_k + lane, ds);
    c->dd[j] = dd;
    c->d[j] = dv;
}

/* sum[n] += the fold of of_lane[WB_LANES][n], as wb_lanes_sum; of_lane is then of no use. */
static void add_lanes(int64_t n, float *of_lane, float *sum) {
    for (int64_t step = WB_LANES / 2; step > 0; step /= 2) {
        WB_INDEPENDENT
        for (int64_t i = 0; i < step * n; i++) of_lane[i] += of_lane[i + step * n];
    }
    for (int64_t i = 0; i < n; i++) sum[i] += of_lane[i];
}

static void backward_token(chunk *c, int64_t i, int64_t head, float *ds) {
    const wb_gated_delta *a = c->args;
    const int64_t dim = a->heads.key_dim, n = a->heads.value_dim, t = c->first + i,
                  at = t * a->heads.n_value + head;
    const float beta = c->gates[i].beta;
    rows_load(c->dout, at * n, n, c->d);
    memset(c->lanes_q, 0, 2 * WB_LANES * (size_t)dim * sizeof(float));
    for (int64_t j = 0; j < n; j++) backward_value(c, i, j, ds + j * dim);
    add_lanes(dim, c->lanes_q, c->dq + i * dim);
    add_lanes(dim, c->lanes_k, c->dk + i * dim);
    rows_store(n, c->d, c->dqkv, wb_delta_value_at(a->heads, t, head));
    const float db = row_dot(c->dd, c->errors + i * n, n) * (beta * (1.0f - beta));
    rows_store(1, &db, c->db, at);
    c->dg[at] = row_sum(c->dgs, n);
}

/* x: a query or a key as it is in qkv; d: the gradient of x times inverse, which becomes its own. */
static void length_backward(int64_t n, float inverse, float *x, float *d) {
    for (int64_t i = 0; i < n; i++) x[i] *= inverse;
    const float along = row_dot(d, x, n);
    for (int64_t i = 0; i < n; i++) d[i] = inverse * fmaf(-along, x[i], d[i]);
}

static void keys_backward(chunk *c, int64_t i, int64_t key_head) {
    const wb_gated_delta *a = c->args;
    const int64_t dim = a->heads.key_dim, q = wb_delta_query_at(a->heads, c->first + i, key_head),
                  k = wb_delta_key_at(a->heads, c->first + i, key_head);
    const delta_keys *keys = &c->keys[i];
    float *dq = c->dq + i * dim, *dk = c->dk + i * dim;
    for (int64_t x = 0; x < dim; x++) dq[x] *= keys->scale;
    rows_load(a->qkv, q, dim, keys->q);
    rows_load(a->qkv, k, dim, keys->k);
    length_backward(dim, keys->inverse_q, keys->q, dq);
    length_backward(dim, keys->inverse_k, keys->k, dk);
    rows_store(dim, dq, c->dqkv, q);
    rows_store(dim, dk, c->dqkv, k);
}

static void backward_chunk(chunk *c, const wb_sequence_run *run, int64_t key_head) {
    const wb_delta_heads h = c->args->heads;
    const int64_t group = h.n_value / h.n_key, size = (int64_t)h.key_dim * h.value_dim;
    for (int64_t i = 0; i < c->n; i++) delta_load_keys(c->args, c->first + i, key_head, &c->keys[i]);
    memset(c->dq, 0, (size_t)(c->n * h.key_dim) * sizeof(float));
    memset(c->dk, 0, (size_t)(c->n * h.key_dim) * sizeof(float));
    for (int64_t member = 0; member < group; member++) {
        const int64_t head = key_head * group + member;
        compute_again(c, run, head);
        for (int64_t i = c->n - 1; i >= 0; i--) backward_token(c, i, head, c->dstates + member * size);
    }
    for (int64_t i = 0; i < c->n; i++) keys_backward(c, i, key_head);
}

static void backward_heads(chunk *c, const wb_sequence_run *run, int64_t key_head) {
    const wb_delta_heads h = c->args->heads;
    const int64_t size = (int64_t)h.key_dim * h.value_dim, group = h.n_value / h.n_key;
    memset(c->dstates, 0, (size_t)(group * size) * sizeof(float));
    for (int64_t end = run->start + run->n; end > run->start; end = c->first) {
        const int64_t begin = (end - 1) / WB_DELTA_CHUNK * WB_DELTA_CHUNK;
        c->first = begin > run->start ? begin : run->start;
        c->n = end - c->first;
        backward_chunk(c, run, key_head);
    }
}

/* da (=), dA_log and ddt_bias (+=) of a value head, from the gradients of g. */
static void gates_backward(const wb_gated_delta *args, int64_t head, const float *dg, wb_rows da,
                           float *dA_log, float *ddt_bias) {
    const float A_log = args->A_log[head], bias = args->dt_bias[head];
    for (int64_t r = 0; r < args->of.n_runs; r++) {
        const wb_sequence_run *run = args->of.runs + r;
        for (int64_t t = run->start; t < run->start + run->n; t++) {
            const int64_t at = t * args->heads.n_value + head;
            float a;
            rows_load(args->a, at, 1, &a);
            const float gradient = wb_delta_gradient_of_a(A_log, bias, a, dg[at]);
            *dA_log = fmaf(dg[at], wb_delta_log_decay(A_log, bias, a), *dA_log);
            *ddt_bias += gradient;
            rows_store(1, &gradient, da, at);
        }
    }
}

wb_status WB_CPU(gated_delta_backward)(wb_device *dev, const wb_gated_delta *args, wb_rows dout, wb_rows dqkv,
                                       wb_rows db, wb_rows da, float *dA_log, float *ddt_bias) {
    const wb_sequences *of = &args->of;
    const wb_delta_heads h = args->heads;
    void *dg = NULL;
    WB_TRY(gated_delta_back_check(args, dout, dqkv, db, da));
    WB_TRY(wb_cpu_scratch_reserve(dev, WB_CPU(delta_backward_bytes)(h)));
    WB_TRY(wb_cpu_shared_reserve(dev, wb_cpu_delta_bytes(of->T, h), &dg));
    clear_padding(of, dqkv, wb_delta_width(h));
    clear_padding(of, db, h.n_value);
    clear_padding(of, da, h.n_value);
    const int64_t work = of->T * h.n_value * h.key_dim * h.value_dim;
#pragma omp parallel for schedule(dynamic) num_threads(wb_cpu_threads(dev, work))
    for (int64_t task = 0; task < of->n_runs * h.n_key; task++) {
        const wb_sequence_run *run = of->runs + task / h.n_key;
        chunk c = {.args = args, .dout = dout, .dqkv = dqkv, .db = db, .dg = dg};
        lay_out(&c, h, wb_cpu_scratch(dev));
        if (run->n > 0) backward_heads(&c, run, task % h.n_key);
    }
#pragma omp parallel for schedule(static) num_threads(wb_cpu_threads(dev, of->T *h.n_value * 64))
    for (int64_t head = 0; head < h.n_value; head++)
        gates_backward(args, head, dg, da, dA_log + head, ddt_bias + head);
    return WB_OK;
}
