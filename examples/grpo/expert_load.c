/* expert_load.c - how evenly the rows of a rollout batch spread over the ranks, in the rollout and in
 * training. Refuses: doing something about it. */
#include "train_step.h"

static wb_status open_load(const wb_model *model, uint32_t passes, wb_load **load_out) {
    const wb_route_model *routes = wb_model_routes(model);
    const wb_load_region region = {.name = "policy",
                                   .n_layers = routes->n_moe_layers,
                                   .n_experts = wb_route_weighted(routes),
                                   .n_shared = routes->n_weightless};
    wb_load_options window = wb_load_options_default();
    window.window = passes;
    return wb_load_open(1, &region, &window, load_out);
}

static wb_status count_batch(wb_load *load, const wb_model *model, const batch *b) {
    for (int64_t i = 0; i < b->n_samples; i++)
        WB_TRY(wb_load_add_record(load, 0, wb_model_routes(model), b->samples[i].record, false));
    return WB_OK;
}

wb_status expert_load_balancedness(const wb_model *model, const wb_placement *placement, const batch *b,
                                   double *balancedness_out) {
    wb_comm *comm = wb_model_comm(model);
    wb_load *load = NULL;
    wb_status status = open_load(model, 1, &load);
    if (status == WB_OK) status = count_batch(load, model, b);
    status = wb_comm_agree(comm, status);
    if (status == WB_OK) status = wb_load_end_pass(load, comm);
    if (status == WB_OK)
        status = wb_load_balancedness(load, 0, WB_PHASES_ALL, 0, placement, NULL, balancedness_out, NULL);
    if (status == WB_NOT_FOUND) *balancedness_out = 1, status = WB_OK;
    wb_load_close(load);
    return status;
}

static wb_status count_micro_batch(wb_load *load, const wb_model *model, const micro_batch *mb) {
    for (int64_t i = 0; i < mb->n_seqs; i++)
        WB_TRY(wb_load_add_record(load, 0, wb_model_routes(model), record_of(mb->samples[i]), true));
    return WB_OK;
}

wb_status expert_load_training(const trainer *t, const packed_batch *p, double *balancedness_out) {
    wb_load *load = NULL;
    wb_status status = wb_comm_agree(t->comm, open_load(t->model, (uint32_t)p->n, &load));
    for (int32_t m = 0; status == WB_OK && m < p->n; m++) {
        status = wb_comm_agree(t->comm, count_micro_batch(load, t->model, &p->list[m]));
        if (status == WB_OK) status = wb_load_end_pass(load, t->comm);
    }
    if (status == WB_OK)
        status = wb_load_balancedness(load, 0, WB_PHASES_ALL, 0, wb_model_placement(t->model), NULL, NULL,
                                      balancedness_out);
    if (status == WB_NOT_FOUND) *balancedness_out = 1, status = WB_OK;
    wb_load_close(load);
    return status;
}
