/* expert_load.c - how evenly the rows of a rollout batch spread over the ranks. Refuses: doing something
 * about it. */
#include "grpo.h"

static wb_status count_batch(wb_load *load, const wb_model *model, const batch *b) {
    for (int64_t i = 0; i < b->n_samples; i++)
        WB_TRY(wb_load_add_record(load, 0, wb_model_routes(model), &b->samples[i].completion->record, false));
    return WB_OK;
}

wb_status expert_load_balancedness(const wb_model *model, const wb_placement *placement, const batch *b,
                                   double *balancedness_out) {
    const wb_route_model *routes = wb_model_routes(model);
    const wb_load_region region = {
        .name = "policy", .n_layers = routes->n_moe_layers, .n_experts = routes->num_experts};
    wb_load_options one_pass = wb_load_options_default();
    wb_comm *comm = wb_model_comm(model);
    wb_load *load = NULL;
    one_pass.window = 1;
    wb_status status = wb_load_open(1, &region, &one_pass, &load);
    if (status == WB_OK) status = count_batch(load, model, b);
    status = wb_comm_agree(comm, status);
    if (status == WB_OK) status = wb_load_end_pass(load, comm);
    if (status == WB_OK)
        status = wb_load_balancedness(load, 0, WB_PHASES_ALL, 0, placement, NULL, balancedness_out, NULL);
    if (status == WB_NOT_FOUND) *balancedness_out = 1, status = WB_OK;
    wb_load_close(load);
    return status;
}
