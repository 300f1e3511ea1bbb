/* moe_choice.c - the one place where experts are chosen: recorded, forced and native rows alike, so that
 * capture and replay cannot disagree. Refuses: where routes come from, who holds the experts. */
#include "hash_tables.h"
#include "host_view.h"
#include "layers/logit_gradient.h"
#include "layers/moe/moe.h"

wb_ids wb_moe_ids(const wb_model *model, void *routes, int32_t moe_index) {
    const wb_route_model *m = &model->route_model;
    wb_ids ids = {.dtype = wb_route_dtype(m->num_experts), .stride = (int64_t)wb_route_row_ids(m)};
    if (routes)
        ids.data =
            (uint8_t *)routes + wb_route_layer_first(m, (uint32_t)moe_index) * wb_dtype_size(ids.dtype);
    return ids;
}

/* The model's router with the K of the layer, and where it has a table by that. */
static wb_router router_of(const wb_model *model, const wb_moe_weights *w) {
    wb_router router = model->config.router;
    router.top_k = wb_config_layer_k(&model->config, w->moe_index);
    if (w->hashed) router.type = WB_ROUTER_HASH;
    return router;
}

void wb_moe_choice_layout(wb_moe_choice *choice, const wb_moe_choice *other, wb_model *model,
                          const wb_sizes *sizes, wb_arena *arena) {
    const int64_t T = sizes->tokens, E = model->config.router.n_experts, K = model->config.router.top_k;
    if (other) *choice = *other;
    choice->model = model;
    wb_place(arena, &choice->logits, T, E, sizeof(float));
    wb_place(arena, &choice->weights, T, K, sizeof(float));
    if (other) return;
    wb_host_view_place(arena, &choice->host_logits, T * E, sizeof(float));
    wb_host_view_place(arena, &choice->host_weights, T * K, sizeof(float));
    if (!sizes->backward) return;
    wb_place(arena, &choice->dlogits, T, E, sizeof(float));
    wb_logit_gradient_place(arena, model, &choice->rounded, T, E);
    wb_place(arena, &choice->dweights, T, K, sizeof(float));
}

static wb_status call_probe(wb_moe_choice *choice, const wb_moe_weights *w, const wb_pass *pass) {
    const wb_router router = router_of(choice->model, w);
    wb_device *dev = choice->model->device;
    const int64_t n_logits = pass->T * router.n_experts, n_weights = pass->T * router.top_k;
    const void *logits, *weights;
    WB_TRY(wb_host_view_read(dev, choice->host_logits, choice->logits.data, (size_t)n_logits * sizeof(float),
                             &logits));
    WB_TRY(wb_host_view_read(dev, choice->host_weights, choice->weights.data,
                             (size_t)n_weights * sizeof(float), &weights));
    pass->probe->call(pass->probe->ctx, w->moe_index, pass->T, logits, weights);
    return WB_OK;
}

wb_status wb_moe_choose(wb_moe_choice *choice, const wb_moe_weights *w, const wb_pass *pass, wb_rows x) {
    const wb_model *model = choice->model;
    wb_device *dev = model->device;
    const wb_router router = router_of(model, w);
    const int64_t T = pass->T;
    float *logits = choice->logits.data;

    const wb_matmul product = wb_matmul_forward(T, x, wb_model_weight(model, w->router), wb_f32_rows(logits));
    WB_TRY(dev->matmul(dev, 1, &product));
    if (w->router_bias >= 0)
        WB_TRY(dev->bias_forward(dev, T, router.n_experts, wb_model_vector(model, w->router_bias),
                                 wb_f32_rows(logits)));
    const wb_ids ids = wb_moe_ids(model, pass->routing->ids, w->moe_index);
    if (!pass->recompute) {
        const wb_topk args = {.router = router,
                              .T = T,
                              .logits = logits,
                              .bias =
                                  w->selection_bias < 0 ? NULL : wb_model_vector(model, w->selection_bias),
                              .table = wb_hash_table_of(model, w->moe_index),
                              .tokens = pass->tokens,
                              .direction = pass->routing->direction,
                              .ids = ids,
                              .native = wb_moe_ids(model, pass->routing->native, w->moe_index)};
        WB_TRY(dev->topk(dev, &args));
    }
    WB_TRY(dev->gate_forward(dev, &router, T, logits, pass->routing->direction, ids, choice->weights.data));
    return pass->probe ? call_probe(choice, w, pass) : WB_OK;
}

wb_status wb_moe_choose_backward(wb_moe_choice *choice, const wb_moe_weights *w, const wb_pass *pass,
                                 wb_rows x, float *const *grads, wb_rows dx) {
    const wb_model *model = choice->model;
    wb_device *dev = model->device;
    const wb_router router = router_of(model, w);
    const int64_t T = pass->T, H = model->config.hidden_size, E = router.n_experts;
    float *dlogits = choice->dlogits.data;
    wb_rows d;
    const wb_ids ids = wb_moe_ids(model, pass->routing->ids, w->moe_index);
    WB_TRY(dev->gate_backward(dev, &router, T, choice->logits.data, pass->routing->direction, ids,
                              choice->dweights.data, dlogits));
    if (w->router_bias >= 0)
        WB_TRY(dev->bias_backward(dev, T, E, wb_f32_rows(dlogits), grads[w->router_bias]));
    WB_TRY(wb_logit_gradient(model, T * E, dlogits, &choice->rounded, &d));
    const wb_matmul list[] = {wb_matmul_wgrad(T, H, E, d, x, grads[w->router]),
                              wb_matmul_dgrad(T, d, wb_model_weight(model, w->router), dx, true)};
    return dev->matmul(dev, 2, list);
}
