/* infer.c - inference: a step's tokens through all layers, over a paged pool of what layers keep of
 * sequences.
 *
 * Owns: the step, op by op or as a graph, and the logits of the wanted rows. Refuses: scheduling, sampling,
 * which block belongs to whom, what a layer keeps; the memory (infer_open.c), the check of a batch
 * (infer_batch.c). */
#include "collective.h"
#include "infer_state.h"
#include "wb_random.h"

/* ---- forward ------------------------------------------------------------------------------------- */

/* logits of the wanted rows of x. */
static wb_status head_forward(wb_infer *infer, wb_rows x) {
    const wb_model *model = infer->model;
    const int64_t n = infer->inputs.n_logits;
    const wb_rows last = wb_activations(model, &infer->last);
    WB_TRY(wb_head_take(model, &infer->head_rows, n, infer->inputs.logit_rows.device, x, last));
    return wb_head_forward(model, n, last, wb_activations(model, &infer->normed), infer->logits.data);
}

static wb_state state_of(const wb_infer *infer, int32_t l) {
    wb_state state = {.dtype = wb_state_dtype(infer->model)};
    const wb_layer_pool *pool = &infer->pools[l];
    for (int i = 0; i < WB_MAX_STATE_TABLES; i++) state.tables[i] = pool->tables[i].data;
    if (pool->shape.sequence_bytes == 0) return state;
    state.sequences = (char *)infer->sequences.states.data + pool->sequence_offset;
    state.sequence_stride = infer->sequences.bytes;
    return state;
}

/* Of MTP layers only the first one (model_mtp.h). */
static int32_t n_layers_run(const wb_infer *infer) {
    return infer->decoder ? 1 : infer->model->config.n_layers;
}

/* The last layer's output: with each layer the buffers change places. */
static wb_rows last_output(const wb_infer *infer) {
    return wb_activations(infer->model, n_layers_run(infer) % 2 == 0 ? &infer->x : &infer->y);
}

/* x (=) the input of the first layer. */
static wb_status input_forward(wb_infer *infer, const wb_pass *pass, wb_rows x) {
    if (infer->decoder) return wb_infer_mtp_input(infer, pass->T, last_output(infer->hidden_of), x);
    return wb_embed_forward(infer->model, pass->T, infer->inputs.tokens.device,
                            wb_activations(infer->model, &infer->y), x);
}

/* *x_out: the last layer's output, [T, H]. */
static wb_status layers_forward(wb_infer *infer, const wb_pass *pass, wb_rows *x_out) {
    const wb_model *model = infer->model;
    wb_rows x = wb_activations(model, &infer->x), y = wb_activations(model, &infer->y);
    WB_TRY(input_forward(infer, pass, x));
    for (int32_t l = 0; l < n_layers_run(infer); l++) {
        const wb_state state = state_of(infer, l);
        WB_TRY(wb_block_forward(&infer->block, l, pass, &state, x, y));
        const wb_rows swap = x;
        x = y;
        y = swap;
    }
    *x_out = x;
    return WB_OK;
}

/* A step in which the host learns nothing on the way, as it lies in a graph. */
typedef struct step {
    wb_infer *infer;
    const wb_pass *pass;
} step;

static wb_status run_step(void *context) {
    const step *s = context;
    wb_rows x = {0};
    WB_TRY(layers_forward(s->infer, s->pass, &x));
    return head_forward(s->infer, x);
}

/* Of the addresses that a graph has, but for those that its size decides, and of how long it waits. */
static uint64_t addresses_of(const wb_model *model) {
    uint64_t stamp = model->device->scratch_moves ^ (uint64_t)(1e3 * model->mailboxes.boxes.timeout);
    for (int32_t i = 0; i < model->n_params; i++)
        stamp = wb_mix64(stamp ^ (uint64_t)(uintptr_t)model->params[i].memory.data);
    return wb_mix64(stamp ^ (uint64_t)(uintptr_t)model->dispatch_tables.data);
}

static wb_status forward_as_graph(wb_infer *infer, const wb_pass *pass) {
    const wb_model *model = infer->model;
    step s = {infer, pass};
    const wb_status status = wb_infer_graphs_run(&infer->graphs, model->device, &infer->graph_size,
                                                 addresses_of(model), run_step, &s);
    return model->n_ranks > 1 ? wb_collective_end(model, status) : status;
}

static wb_status forward_op_by_op(wb_infer *infer, const wb_pass *pass) {
    wb_rows x = {0};
    WB_TRY(wb_collective_end(infer->model, layers_forward(infer, pass, &x)));
    /* After the last exchange nobody waits for this rank: a failure is its own, the communicator lives. */
    return head_forward(infer, x);
}

wb_status wb_infer_forward(wb_infer *infer, const wb_infer_batch *batch, const wb_routing *routing,
                           const float **logits_out) {
    wb_pass pass;
    /* All that can fail on one rank alone, before the first exchange of rows. */
    WB_TRY(wb_infer_agree(infer, batch->T, wb_infer_take_batch(infer, batch, routing, &pass), &pass));
    const bool whole = infer->model->n_ranks > 1 ? pass.mailbox_rows > 0 : infer->graph_size.T > 0;
    WB_TRY(whole ? forward_as_graph(infer, &pass) : forward_op_by_op(infer, &pass));
    WB_TRY(wb_routing_give(infer->model, &pass));
    wb_infer_end_states(infer, batch);
    *logits_out = infer->logits.data;
    return WB_OK;
}

bool wb_infer_drafts(const wb_infer *infer) {
    return infer->mtp != NULL;
}

static wb_status draft_behind(wb_infer *mtp, const wb_infer *before, const wb_infer_batch *batch,
                              const int32_t *hidden_rows, const float **logits_out) {
    const wb_routing native = {.ids = mtp->ids.data};
    mtp->hidden_of = before;
    mtp->hidden_rows = hidden_rows;
    const wb_status status = wb_infer_forward(mtp, batch, &native, logits_out);
    return status == WB_OK ? status : wb_fail_context(status, "MTP layers");
}

wb_status wb_infer_draft(wb_infer *infer, const wb_infer_batch *batch, const int32_t *hidden_rows,
                         const float **logits_out) {
    return draft_behind(infer->mtp, infer, batch, hidden_rows, logits_out);
}

wb_status wb_infer_draft_further(wb_infer *infer, const wb_infer_batch *batch, const int32_t *hidden_rows,
                                 const float **logits_out) {
    return draft_behind(infer->mtp, infer->mtp, batch, hidden_rows, logits_out);
}

int64_t wb_infer_padded(const wb_infer *infer, int64_t T) {
    return wb_infer_has_graphs(infer) ? wb_graph_rows(T, infer->options.max_tokens) : T;
}
