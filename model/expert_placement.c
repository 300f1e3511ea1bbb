/* expert_placement.c - see expert_placement.h. */
#include "expert_placement.h"

#include <stdlib.h>

static void fill_tables(wb_model *m, const int32_t *expert_of_slot) {
    const int64_t E = m->config.router.n_experts, R = wb_comm_size(m->comm);
    for (int64_t r = 0; r < R; r++) {
        const int64_t first = E * r / R, end = E * (r + 1) / R;
        for (int64_t s = first; s < end; s++) {
            const int64_t e = expert_of_slot ? expert_of_slot[s] : s;
            m->expert_rank[e] = (int32_t)r;
            m->local_index[e] = (int32_t)(s - first);
        }
        if (r == wb_comm_rank(m->comm)) m->n_local_experts = (int32_t)(end - first);
    }
}

wb_status wb_expert_placement_open(wb_model *model) {
    const size_t E = (size_t)model->config.router.n_experts;
    WB_TRY(WB_OWN(&model->memory.host, model->expert_rank, E, "expert ranks"));
    WB_TRY(WB_OWN(&model->memory.host, model->local_index, E, "expert indices"));
    fill_tables(model, NULL);
    return WB_OK;
}

static wb_status check_permutation(const wb_model *m, const int32_t *expert_of_slot) {
    const int32_t E = m->config.router.n_experts;
    bool *seen = NULL;
    WB_TRY(WB_NEW(seen, (size_t)E, "placement"));
    wb_status status = WB_OK;
    for (int32_t s = 0; s < E && status == WB_OK; s++) {
        const int32_t e = expert_of_slot[s];
        if (e < 0 || e >= E || seen[e])
            status =
                wb_fail(WB_INVALID_ARGUMENT,
                        "placement: slot %d: expected an expert of 0..%d that no slot before has, found %d",
                        s, E - 1, e);
        else
            seen[e] = true;
    }
    free(seen);
    return status;
}

wb_status wb_expert_placement_set(wb_model *model, const int32_t *expert_of_slot) {
    WB_TRY(check_permutation(model, expert_of_slot));
    fill_tables(model, expert_of_slot);
    if (model->n_local_experts == 0) return WB_OK;
    for (int32_t i = 0; i < model->n_tensors; i++) {
        wb_tensor *tensor = &model->tensors[i];
        if (tensor->expert < 0) continue;
        /* The experts of a storage lie one after the other, each with its matrices in the same places. */
        const int64_t expert_elements = model->params[tensor->param].n / model->n_local_experts;
        const bool here = model->expert_rank[tensor->expert] == wb_comm_rank(model->comm);
        tensor->offset %= expert_elements;
        if (here) tensor->offset += model->local_index[tensor->expert] * expert_elements;
    }
    return WB_OK;
}
