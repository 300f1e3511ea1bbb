/* compressed_ops.h - the part of all_ops.h that is of norms without a weight, hyper-connections, compressors,
 * indexers and attention over entries. */
#ifndef WB_COMPRESSED_OPS_H
#define WB_COMPRESSED_OPS_H

#include "entry_problem.h"
#include "kept_outputs.h"

/* A norm without a weight, as of heads. */
static inline void all_plain_norms(wb_device *dev, int64_t T, int64_t H, outputs *o) {
    const wb_norm norm = {NULL, 1e-6f, false};
    float *x = random_floats(T * H, -2, 2), *d = random_floats(T * H, -1, 1), *y = floats(T * H);
    assert_ok(dev->rmsnorm_forward(dev, T, H, wb_f32_rows(x), norm, wb_f32_rows(y)));
    assert_ok(dev->rmsnorm_backward(dev, T, H, wb_f32_rows(x), norm, wb_f32_rows(d), wb_f32_rows(d), NULL));
    keep_floats(o, y, T * H, "rmsnorm_forward without a weight");
    keep_floats(o, d, T * H, "rmsnorm_backward without a weight");
    free(x);
}

static inline void all_streams(wb_device *dev, int64_t T, int64_t H, outputs *o) {
    enum { S = 4 };
    const int64_t M = wb_hyper_width(S, 20), row = S * H;
    float *x = random_floats(T * row, -2, 2), *products = random_floats(T * M, -3, 3),
          *base = random_floats(M, -1, 1);
    float *scale = random_floats(3, 0, 1), *out = random_floats(T * H, -1, 1),
          *dy = random_floats(T * row, -1, 1);
    for (int32_t iterations = 0; iterations <= 20; iterations += 20) {
        float *in = floats(T * H), *weights = floats(T * M), *dx = floats(T * row), *d = floats(T * M);
        float *dscale = random_floats(3, -1, 1), *dbase = random_floats(M, -1, 1);
        const wb_hyper args = {.T = T,
                               .H = H,
                               .n_streams = S,
                               .iterations = iterations,
                               .norm_eps = 1e-6f,
                               .eps = 1e-6f,
                               .x = wb_f32_rows(x),
                               .products = products,
                               .scale = scale,
                               .base = base};
        assert_ok(dev->hyper_pre_forward(dev, &args, wb_f32_rows(in), weights));
        if (iterations > 0) {
            float *y = floats(T * row), *dout = floats(T * H);
            assert_ok(
                dev->hyper_post_forward(dev, T, S, H, weights, args.x, wb_f32_rows(out), wb_f32_rows(y)));
            assert_ok(dev->hyper_post_backward(dev, T, S, H, weights, args.x, wb_f32_rows(out),
                                               wb_f32_rows(dy), wb_f32_rows(dout), wb_f32_rows(dx), d));
            keep(o, d, (size_t)(T * M) * sizeof *d, "hyper_post_backward weights");
            keep_floats(o, y, T * row, "hyper_post_forward");
            keep_floats(o, dout, T * H, "hyper_post_backward dout");
        }
        assert_ok(
            dev->hyper_pre_backward(dev, &args, wb_f32_rows(out), d, wb_f32_rows(dx), d, dscale, dbase));
        keep_floats(o, in, T * H, "hyper_pre_forward");
        keep_floats(o, weights, T * M, "hyper_pre_forward weights");
        keep_floats(o, dx, T * row, "hyper_pre_backward dx");
        keep_floats(o, d, T * M, "hyper_pre_backward products");
        keep_floats(o, dscale, 3, "hyper_pre_backward scale");
        keep_floats(o, dbase, M, "hyper_pre_backward base");
    }
    free(x), free(products), free(base), free(scale), free(out), free(dy);
}

/* Two sequences, of which a call has the first 2 / 3 and another one the rest, then both as wholes. */
static inline void all_compressed(wb_device *dev, int64_t T, int64_t D, outputs *o) {
    enum { SEQS = 2, RATIO = 4 };
    const int32_t length = (int32_t)T / SEQS, cut = length * 2 / 3;
    for (int overlaps = 0; overlaps < 2; overlaps++) {
        const int64_t C = D * (1 + overlaps), stride = wb_compress_state_bytes(D, overlaps) + 64;
        float *values = random_floats(T * C, -2, 2), *gates = random_floats(T * C, -4, 4),
              *bias = random_floats(RATIO * C, -1, 1), *entries = random_floats(T * D, -1, 1);
        float *dvalues = random_floats(T * C, -1, 1), *dgates = floats(T * C),
              *dbias = copied(bias, RATIO * C);
        int32_t *pos = xalloc(T, sizeof *pos);
        wb_sequence_run *runs = xalloc(SEQS, sizeof *runs);
        char *states = xalloc(SEQS, (size_t)stride);
        wb_compress args = {
            .of = {.T = T, .n_runs = SEQS, .runs = runs, .states = states, .state_stride = stride},
            .width = D,
            .ratio = RATIO,
            .overlaps = overlaps == 1,
            .values = wb_f32_rows(values),
            .gates = wb_f32_rows(gates),
            .bias = bias,
            .pos = pos};
        for (int part = 0; part < 3; part++) {
            const int32_t first = part == 1 ? cut : 0, n = part == 0 ? cut : length - first;
            for (int32_t i = 0; i < SEQS; i++) {
                runs[i] = (wb_sequence_run){i * n, n, SEQS - 1 - i};
                for (int32_t j = 0; j < n; j++) pos[i * n + j] = first + j;
            }
            if (part == 2) args.of.states = NULL;
            assert_ok(dev->compress_forward(dev, &args, wb_f32_rows(entries)));
            keep(o, entries, (size_t)(T * D) * sizeof *entries, "compress_forward");
            keep(o, states, (size_t)(SEQS * stride), "compress_forward states");
        }
        assert_ok(dev->compress_backward(dev, &args, wb_f32_rows(entries), wb_f32_rows(dvalues),
                                         wb_f32_rows(dgates), dbias));
        keep_floats(o, dvalues, T * C, "compress_backward values");
        keep_floats(o, dgates, T * C, "compress_backward gates");
        keep_floats(o, dbias, RATIO * C, "compress_backward bias");
        free(values), free(gates), free(bias), free(entries), free(pos), free(runs), free(states);
    }
}

/* The lists of an indexer, whose keys are entries, and attention with and without lists. */
static inline void all_entries(wb_device *dev, int64_t longest, int32_t n_heads, int32_t head_dim,
                               outputs *o) {
    for (int listed = 0; listed < 2; listed++) {
        entry_problem p;
        open_entry_problem(&p, (entry_shape){n_heads, head_dim, 8, 13, 4, longest, listed ? 5 : 0, true});
        float *weights = random_floats(p.T * p.s.n_heads, -1, 1), *out = floats(p.k),
              *dout = random_floats(p.k, -1, 1);
        float *grad = random_floats(p.n, -1, 1);
        const wb_attention *raw = &p.args.raw;
        const wb_indexer indexer = {.T = p.T,
                                    .n_heads = p.s.n_heads,
                                    .head_dim = head_dim,
                                    .top_k = p.s.most_listed,
                                    .q = raw->q,
                                    .weights = weights,
                                    .keys = p.args.entries,
                                    .seq = p.seq,
                                    .pos = p.pos,
                                    .blocks = p.blocks,
                                    .max_blocks = p.max_blocks,
                                    .block_size = p.s.block_size,
                                    .max_entries = longest / p.s.ratio,
                                    .listed = p.listed};
        if (listed) {
            assert_ok(dev->indexer_topk(dev, &indexer));
            keep(o, p.listed, (size_t)(p.T * p.s.most_listed) * sizeof *p.listed, "indexer_topk");
        }
        assert_ok(dev->entry_attention_forward(dev, &p.args, wb_f32_rows(out)));
        assert_ok(dev->entry_attention_backward(dev, &p.args, wb_f32_rows(dout), wb_f32_rows(grad),
                                                wb_f32_rows(grad + p.k), wb_f32_rows(grad + p.entries),
                                                grad + p.sinks));
        keep_floats(o, out, p.k, "entry_attention_forward");
        keep_floats(o, grad, p.n, "entry_attention_backward");
        close_entry_problem(&p), free(weights), free(dout);
    }
}

#endif
