/* bias_update.c - under --bias-rate the selection biases of the routers of the policy follow the load of each
 * update: of the routes that its rows followed, which under replay are those of the rollout, not what the
 * routers would choose now (rule 39). Refuses: the rule (wb_model_update_selection_bias). */
#include "train_step.h"
#include "wb_memory.h"

#include <stdlib.h>
#include <string.h>

static size_t n_loads(const trainer *t) {
    const wb_route_model *model = wb_model_routes(t->model);
    return (size_t)model->n_moe_layers * model->num_experts;
}

wb_status bias_check(const trainer *t) {
    int64_t *none = NULL;
    if (t->o->bias_rate == 0) return WB_OK;
    WB_TRY(WB_NEW(none, n_loads(t), "loads"));
    const wb_status status = wb_model_update_selection_bias(t->model, 0, none);
    free(none);
    return status == WB_OK ? status : wb_fail_context(status, "--bias-rate");
}

wb_status bias_open(const trainer *t, wb_owner *owner, double **loads_out) {
    *loads_out = NULL;
    return t->o->bias_rate == 0 ? WB_OK : WB_OWN(owner, *loads_out, n_loads(t), "loads");
}

void bias_count(const trainer *t, const packed_batch *p, const micro_batch *mb) {
    const wb_route_model *model = wb_model_routes(t->model);
    const wb_dtype dtype = wb_route_dtype(model->num_experts);
    if (!p->loads) return;
    for (int64_t row = 0; row < mb->T; row++) {
        const char *used = (const char *)p->host_ids + (size_t)row * p->row_bytes;
        for (uint32_t l = 0; l < model->n_moe_layers; l++) {
            double *loads = p->loads + (size_t)l * model->num_experts;
            const size_t first = wb_route_layer_first(model, l), K = wb_route_layer_k(model, l);
            for (size_t k = 0; k < K; k++) loads[wb_route_id(used, dtype, first + k)]++;
        }
    }
}

/* Counts are whole numbers far below 2^53: sums of any order are exact. */
wb_status bias_update(const trainer *t, packed_batch *p) {
    const size_t n = n_loads(t);
    int64_t *all = NULL;
    if (!p->loads) return WB_OK;
    WB_TRY(wb_comm_all_reduce_f64(t->comm, p->loads, n));
    wb_status status = WB_NEW(all, n, "loads");
    for (size_t i = 0; status == WB_OK && i < n; i++) all[i] = (int64_t)p->loads[i];
    if (status == WB_OK) status = wb_model_update_selection_bias(t->model, (float)t->o->bias_rate, all);
    free(all);
    memset(p->loads, 0, n * sizeof *p->loads);
    return wb_comm_agree(t->comm, status);
}
