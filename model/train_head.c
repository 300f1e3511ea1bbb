/* train_head.c - the head of a trainer: log-probabilities of the targets, and their backward, over the rows
 * that have a target. Logits exist for a chunk of rows at a time: they would be the largest buffer of all. */
#include "layers/head.h"
#include "layers/logit_gradient.h"
#include "train_state.h"

/* A chunk adds its sum to the gradient of the head, which is as large as the logits of hidden_size rows and
 * is read and written for it: chunks of fewer rows than that spend more time on it than on their products. */
#define LOGITS_BYTES ((int64_t)5 << 28)
#define LOGITS_ROWS 2048

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

void wb_train_keep_logits(wb_train *train, size_t bytes) {
    const int64_t V = train->model->config.vocab_size, tokens = train->sizes.tokens;
    const size_t size = sizeof(float) + (train->model->activations == WB_BF16 ? sizeof(uint16_t) : 0);
    const int64_t fit = LOGITS_BYTES / ((int64_t)sizeof(float) * V), more = (int64_t)(bytes / size) / V;
    const int64_t rows = min64(tokens, min64(LOGITS_ROWS, fit < 1 ? 1 : fit));
    train->chunk_rows = more >= tokens - rows ? tokens : rows;
}

static int64_t rows_from(const wb_train *train, int64_t start, int64_t total) {
    return min64(total - start, train->chunk_rows);
}

void wb_train_layout_head(wb_train *train, wb_arena *arena) {
    const wb_model *model = train->model;
    const int64_t H = model->config.hidden_size, V = model->config.vocab_size, n = train->sizes.tokens;
    const int64_t chunk = train->chunk_rows;
    wb_place_activations(arena, model, &train->head_x, n, H);
    wb_place_activations(arena, model, &train->head_norm, n, H);
    wb_place_activations(arena, model, &train->dhead, train->sizes.backward ? n : chunk, H);
    wb_head_rows_layout(&train->head_rows, model, n, train->sizes.backward, arena);
    if (wb_model_is_hyper(model)) wb_place_activations(arena, model, &train->mixed, chunk, H);
    wb_place(arena, &train->logits, chunk, V, sizeof(float));
    wb_place(arena, &train->logprobs, n, 1, sizeof(float));
    WB_PLACE_HOST(arena, train->host_logprobs, n);
    if (!train->sizes.backward) return;
    wb_place(arena, &train->dlogprobs, n, 1, sizeof(float));
    wb_logit_gradient_place(arena, model, &train->dlogits, chunk, V);
}

wb_status wb_train_head_forward(wb_train *train, wb_rows x) {
    const wb_model *model = train->model;
    wb_device *dev = model->device;
    const int64_t n = train->n_head, H = model->config.hidden_size, V = model->config.vocab_size;
    const int32_t *targets = train->inputs.head_targets.device;
    const wb_rows rows_x = wb_activations(model, &train->head_x),
                  normed = wb_activations(model, &train->head_norm);
    float *logprobs = train->logprobs.data;
    WB_TRY(wb_head_take(model, &train->head_rows, n, train->inputs.head_rows.device, x, rows_x));
    for (int64_t start = 0; start < n; start += train->chunk_rows) {
        const int64_t rows = rows_from(train, start, n), at = start * H;
        wb_distribution of;
        const bool limited = wb_train_distribution(train, start, &of);
        WB_TRY(wb_head_forward(model, rows, wb_rows_from(rows_x, at), wb_rows_from(normed, at),
                               train->logits.data));
        WB_TRY(dev->logprob_forward(dev, rows, V, train->logits.data, targets + start, limited ? &of : NULL,
                                    logprobs + start));
    }
    train->logits_kept = n <= train->chunk_rows;
    return WB_OK;
}

wb_status wb_train_logits(wb_train *train, float *logits_out) {
    const wb_model *model = train->model;
    wb_device *dev = model->device;
    if (!train->forward_done)
        return wb_fail(WB_INVALID_ARGUMENT, "logits: expected a forward before, found none");
    const int64_t W = wb_model_stream_width(model), V = model->config.vocab_size;
    const wb_rows x = wb_train_residual(train, model->config.n_layers);
    /* The norm's rows go to dhead: head_norm belongs to the backward that may be due. */
    train->logits_kept = false;
    for (int64_t start = 0; start < train->T; start += train->chunk_rows) {
        const int64_t rows = rows_from(train, start, train->T);
        wb_rows mixed = wb_activations(model, &train->mixed);
        WB_TRY(wb_head_mix(model, &train->head_rows, rows, wb_rows_from(x, start * W), &mixed));
        WB_TRY(wb_head_forward(model, rows, mixed, wb_activations(model, &train->dhead), train->logits.data));
        WB_TRY(dev->to_host(dev, logits_out + start * V, train->logits.data,
                            (size_t)(rows * V) * sizeof(float)));
    }
    return WB_OK;
}

wb_status wb_train_head_backward(wb_train *train, wb_rows dx) {
    const wb_model *model = train->model;
    wb_device *dev = model->device;
    const int64_t n = train->n_head, H = model->config.hidden_size, V = model->config.vocab_size;
    const int32_t *targets = train->inputs.head_targets.device;
    const float *dlogprobs = train->dlogprobs.data;
    const wb_rows x = wb_activations(model, &train->head_x),
                  normed = wb_activations(model, &train->head_norm),
                  dhead = wb_activations(model, &train->dhead);
    float *logits = train->logits.data;
    for (int64_t start = 0; start < n; start += train->chunk_rows) {
        const int64_t rows = rows_from(train, start, n), at = start * H;
        wb_rows dlogits;
        wb_distribution of;
        const bool limited = wb_train_distribution(train, start, &of);
        if (!train->logits_kept)
            WB_TRY(wb_head_forward(model, rows, wb_rows_from(x, at), wb_rows_from(normed, at), logits));
        train->logits_kept = false; /* their gradient takes their place */
        WB_TRY(dev->logprob_backward(dev, rows, V, logits, targets + start, limited ? &of : NULL,
                                     dlogprobs + start, logits));
        WB_TRY(wb_logit_gradient(model, rows * V, logits, &train->dlogits, &dlogits));
        WB_TRY(wb_head_logits_backward(model, rows, wb_rows_from(normed, at), dlogits, train->grads,
                                       wb_rows_from(dhead, at)));
    }
    WB_TRY(wb_head_norm_backward(model, n, x, dhead, train->grads, dhead));
    return wb_head_take_backward(model, &train->head_rows, n, train->inputs.head_rows.device, train->T, dhead,
                                 train->grads, dx);
}
