/* moe.c - the MoE feed-forward part: its tensors, and its steps in order, forward and backward.
 * Refuses: what the steps do (moe.h). */
#include "layers/moe/moe.h"
#include "config.h"
#include "registry.h"

typedef struct moe {
    wb_model *model;
    wb_moe_choice choice;
    wb_moe_rows plan;
    wb_moe_exchange exchange;
    wb_moe_experts experts;
    wb_moe_shared shared;

    /* Kept by a forward for its backward. */
    wb_buffer rows; /* [T * K, H] its expert's output */

    /* Scratch. */
    wb_buffer sent;   /* [T * K, H] rows on their way; R > 1 */
    wb_buffer output; /* [n, H] of the slots' rows */
} moe;

static void declare_experts(wb_registry *registry, int32_t l, wb_moe_weights *w) {
    const wb_model *m = registry->model;
    const int64_t H = m->config.hidden_size, F = m->config.expert_width;
    const bool biases = m->family->expert_biases;
    w->gate_up = wb_registry_slots(registry, w->moe_index, m->dtype, 2 * F, H);
    w->down = wb_registry_slots(registry, w->moe_index, m->dtype, H, F);
    if (biases) {
        w->gate_up_bias = wb_registry_slots(registry, w->moe_index, WB_F32, 2 * F, 1);
        w->down_bias = wb_registry_slots(registry, w->moe_index, WB_F32, H, 1);
    }
    for (int32_t e = 0; e < wb_config_weighted(&m->config); e++) {
        wb_registry_tensor(registry, l, e, "gate_proj.weight", F, H, w->gate_up, 0);
        wb_registry_tensor(registry, l, e, "up_proj.weight", F, H, w->gate_up, F * H);
        wb_registry_tensor(registry, l, e, "down_proj.weight", H, F, w->down, 0);
        if (!biases) continue;
        wb_registry_tensor(registry, l, e, "gate_proj.bias", F, 0, w->gate_up_bias, 0);
        wb_registry_tensor(registry, l, e, "up_proj.bias", F, 0, w->gate_up_bias, F);
        wb_registry_tensor(registry, l, e, "down_proj.bias", H, 0, w->down_bias, 0);
    }
}

static void declare(wb_registry *registry, int32_t l, void *weights) {
    const wb_model *m = registry->model;
    wb_moe_weights *w = weights;
    w->moe_index = registry->n_moe++;
    w->router =
        wb_registry_linear(registry, l, "mlp.gate.weight", m->config.router.n_experts, m->config.hidden_size);
    w->hashed = wb_config_is_hash(&m->config, l);
    w->selection_bias =
        m->family->selection_bias && !w->hashed
            ? wb_registry_vector(registry, l, "mlp.gate.e_score_correction_bias", m->config.router.n_experts)
            : -1;
    w->router_bias = w->gate_up_bias = w->down_bias = -1;
    if (m->family->expert_biases)
        w->router_bias = wb_registry_vector(registry, l, "mlp.gate.bias", m->config.router.n_experts);
    declare_experts(registry, l, w);
    wb_moe_shared_declare(registry, l, &w->shared);
}

static wb_rows rows_of(const moe *m, const wb_buffer *buffer) {
    return wb_activations(m->model, buffer);
}

static void layout(void *worker, wb_model *model, const wb_sizes *sizes, wb_arena *arena) {
    moe *m = worker;
    const moe *other = sizes->scratch_of;
    const int64_t n_pairs = sizes->tokens * model->config.router.top_k, H = model->config.hidden_size;
    m->model = model;
    wb_moe_choice_layout(&m->choice, other ? &other->choice : NULL, model, sizes, arena);
    wb_moe_rows_layout(&m->plan, other ? &other->plan : NULL, model, sizes, arena);
    wb_moe_experts_layout(&m->experts, other ? &other->experts : NULL, model, sizes, arena);
    wb_moe_shared_layout(&m->shared, other ? &other->shared : NULL, model, sizes, arena);
    wb_place_activations(arena, model, &m->rows, n_pairs, H);
    if (wb_moe_rows_travel(m->model) || sizes->backward)
        wb_place_scratch(arena, model, &m->output, other ? &other->output : NULL, sizes->expert_rows, H);
    if (!wb_moe_rows_travel(m->model)) return;
    if (!other) wb_arena_part(arena, "exchange");
    wb_place_scratch(arena, model, &m->sent, other ? &other->sent : NULL, n_pairs, H);
    if (other)
        m->exchange = other->exchange;
    else
        wb_moe_exchange_layout(&m->exchange, model, sizes, arena);
}

static double work(const wb_config *config, const wb_sizes *sizes) {
    const double T = (double)sizes->tokens, H = config->hidden_size;
    return T * H * config->router.n_experts + 3 * T * config->router.top_k * H * config->expert_width +
           wb_swiglu_work(config, config->shared_width, sizes->tokens);
}

/* As run_experts, by mailboxes: *rows_out is this rank's. */
static wb_status run_experts_by_mailboxes(moe *m, const wb_moe_weights *w, const wb_pass *pass, wb_rows x,
                                          wb_rows *rows_out) {
    const wb_model *model = m->model;
    const wb_mailboxes *boxes = &model->mailboxes.boxes;
    wb_device *dev = model->device;
    int32_t *offsets = m->plan.grouped_offsets.data, *place = m->plan.to_received.data;
    const wb_rows received = {wb_mailbox_row(boxes, boxes->rank, 0), boxes->dtype};
    m->plan.n = pass->mailbox_rows;
    m->plan.gather = place;
    WB_TRY(dev->mailbox_send(dev, boxes, pass->T * wb_config_layer_k(&model->config, w->moe_index),
                             m->plan.row_token.data, m->plan.offsets.data, x));
    WB_TRY(dev->mailbox_receive(dev, boxes, offsets, place));
    WB_TRY(wb_moe_experts_forward(&m->experts, &m->plan, w, pass->leaves_nothing, received,
                                  rows_of(m, &m->output)));
    WB_TRY(dev->mailbox_return(dev, boxes, pass->mailbox_rows, offsets, place, rows_of(m, &m->output)));
    WB_TRY(dev->mailbox_wait(dev, boxes));
    *rows_out = (wb_rows){wb_mailbox_output(boxes, boxes->rank, 0), boxes->dtype};
    return WB_OK;
}

/* rows (=) the outputs of the experts for x[T,H]. */
static wb_status run_experts(moe *m, const wb_moe_weights *w, bool leaves_nothing, wb_rows x) {
    wb_device *dev = m->model->device;
    if (!wb_moe_rows_travel(m->model))
        return wb_moe_experts_forward(&m->experts, &m->plan, w, leaves_nothing, x, rows_of(m, &m->rows));
    WB_TRY(dev->gather_rows(dev, m->plan.n_sent, m->model->config.hidden_size, m->plan.row_token.data, x,
                            rows_of(m, &m->sent)));
    WB_TRY(wb_moe_send_to_experts(&m->exchange, &m->plan, rows_of(m, &m->sent)));
    WB_TRY(wb_moe_experts_forward(&m->experts, &m->plan, w, leaves_nothing, rows_of(m, &m->exchange.received),
                                  rows_of(m, &m->output)));
    return wb_moe_return_to_tokens(&m->exchange, &m->plan, rows_of(m, &m->output), rows_of(m, &m->rows));
}

/* What experts without weights make of the tokens. */
static wb_own_choices own_choices(const moe *m, const wb_moe_weights *w, const wb_pass *pass) {
    const wb_config *config = &m->model->config;
    return (wb_own_choices){.T = pass->T,
                            .H = config->hidden_size,
                            .K = wb_config_layer_k(config, w->moe_index),
                            .first = (uint32_t)wb_config_weighted(config),
                            .ids = wb_moe_ids(m->model, pass->routing->ids, w->moe_index),
                            .weights = m->choice.weights.data};
}

static wb_status forward(void *worker, const void *weights, const wb_pass *pass, const wb_state *state,
                         wb_rows x, wb_rows y) {
    moe *m = worker;
    const wb_moe_weights *w = weights;
    wb_device *dev = m->model->device;
    const int32_t K = wb_config_layer_k(&m->model->config, w->moe_index);
    const int64_t T = pass->T, H = m->model->config.hidden_size;
    const wb_own_choices own = own_choices(m, w, pass);
    wb_rows rows = rows_of(m, &m->rows);
    (void)state;
    WB_TRY(wb_moe_choose(&m->choice, w, pass, x));
    WB_TRY(wb_moe_rows_make(&m->plan, &m->exchange, pass, w->moe_index));
    if (pass->used && !pass->recompute) WB_TRY(wb_moe_rows_used(&m->plan, pass, w->moe_index));
    WB_TRY(pass->mailbox_rows > 0 ? run_experts_by_mailboxes(m, w, pass, x, &rows)
                                  : run_experts(m, w, pass->leaves_nothing, x));
    WB_TRY(dev->moe_combine(dev, T, K, H, rows, m->plan.pair_row.data, m->choice.weights.data, y));
    if (m->model->config.n_weightless > 0) WB_TRY(dev->moe_own_forward(dev, &own, x, y));
    return wb_moe_shared_forward(&m->shared, &w->shared, T, x, y);
}

/* Gradients of the experts' inputs from those of their outputs, which come in `output` or, with several
 * ranks, in `sent`; *drows_out: where they lie, row by row. */
static wb_status run_experts_backward(moe *m, const wb_moe_weights *w, bool starts_grads, wb_rows x,
                                      float *const *grads, wb_rows *drows_out) {
    wb_device *dev = m->model->device;
    const wb_rows output = rows_of(m, &m->output);
    if (!wb_moe_rows_travel(m->model)) {
        *drows_out = output;
        return wb_moe_experts_backward(&m->experts, &m->plan, w, starts_grads, x, grads, output);
    }
    *drows_out = rows_of(m, &m->rows);
    WB_TRY(wb_moe_send_to_experts(&m->exchange, &m->plan, rows_of(m, &m->sent)));
    const wb_rows received = rows_of(m, &m->exchange.received);
    WB_TRY(dev->gather_rows(dev, m->plan.n, m->model->config.hidden_size, m->plan.to_received.data, received,
                            output));
    WB_TRY(wb_moe_experts_backward(&m->experts, &m->plan, w, starts_grads, x, grads, output));
    return wb_moe_return_to_tokens(&m->exchange, &m->plan, output, rows_of(m, &m->rows));
}

static wb_status backward(void *worker, const void *weights, const wb_pass *pass, wb_rows x, wb_rows dy,
                          float *const *grads, wb_rows dx) {
    moe *m = worker;
    const wb_moe_weights *w = weights;
    wb_device *dev = m->model->device;
    const int32_t K = wb_config_layer_k(&m->model->config, w->moe_index);
    const int64_t T = pass->T, H = m->model->config.hidden_size;
    const wb_own_choices own = own_choices(m, w, pass);

    /* With several ranks `sent` is free once its content has gone, and so are `rows` after the combine's
     * backward. */
    const wb_rows doutputs = rows_of(m, wb_moe_rows_travel(m->model) ? &m->sent : &m->output);
    const int32_t *pair_row = m->plan.pair_row.data;
    wb_rows drows;
    WB_TRY(dev->moe_combine_backward(dev, T, K, H, rows_of(m, &m->rows), pair_row, m->choice.weights.data, dy,
                                     doutputs, m->choice.dweights.data));
    WB_TRY(run_experts_backward(m, w, pass->starts_grads, x, grads, &drows));
    WB_TRY(dev->moe_combine(dev, T, K, H, drows, pair_row, NULL, dx));
    if (m->model->config.n_weightless > 0)
        WB_TRY(dev->moe_own_backward(dev, &own, x, dy, dx, m->choice.dweights.data));
    WB_TRY(wb_moe_choose_backward(&m->choice, w, pass, x, grads, dx));
    return wb_moe_shared_backward(&m->shared, &w->shared, T, x, dy, grads, dx);
}

const wb_layer_kind wb_layer_moe = {
    .weights_size = sizeof(wb_moe_weights),
    .worker_size = sizeof(moe),
    .declare = declare,
    .layout = layout,
    .work = work,
    .forward = forward,
    .backward = backward,
};
