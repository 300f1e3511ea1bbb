/* moe_plan_host.c - see wb_moe_plan_host.h. Refuses: choosing replicas (wb_dispatch_rules.h). */
#include "cpu/cpu_ids.h"
#include "wb_dispatch_rules.h"
#include "wb_moe_plan_host.h"

#include <string.h>

static bool is_padding(const wb_moe_plan *plan, int64_t t) {
    return plan->direction && plan->direction[t] == WB_ROW_PADDING;
}

static wb_status check(const wb_moe_plan *plan) {
    const int32_t K = plan->top_k;
    if (K < 0 || plan->T > INT32_MAX / (K > 0 ? K : 1))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "moe_plan: %" PRId64 " tokens of %d choices: more pairs than an i32 can number",
                       plan->T, K);
    return check_ids(WB_OP_moe_plan, "moe_plan: ids", plan->ids, plan->T, K, plan->n_experts);
}

/* pair_row, if not NULL, (=) the slot of each pair, -1 for one that has none; offsets[s + 1] (=) how many
 * there are of slot s. */
static void choose_slots(const wb_moe_plan *plan) {
    memset(plan->offsets, 0, ((size_t)plan->n_slots + 1) * sizeof *plan->offsets);
    for (int64_t t = 0; t < plan->T; t++) {
        int32_t *slots = plan->pair_row ? plan->pair_row + t * plan->top_k : NULL;
        if (is_padding(plan, t)) {
            for (int32_t k = 0; slots && k < plan->top_k; k++) slots[k] = -1;
            continue;
        }
        const uint64_t key = plan->tokens ? wb_dispatch_key(plan->tokens[t], plan->pos[t]) : 0;
        for (int32_t k = 0; k < plan->top_k; k++) {
            const uint32_t id = id_get(plan->ids, t, k);
            const bool travels = id < (uint32_t)(plan->n_experts - plan->n_weightless);
            const int32_t slot = travels ? wb_dispatch_slot(&plan->rule, id, key) : -1;
            if (slots) slots[k] = slot;
            if (travels) plan->offsets[slot + 1]++;
        }
    }
}

wb_status wb_moe_offsets_host(const wb_moe_plan *plan) {
    WB_TRY(check(plan));
    choose_slots(plan);
    for (int32_t s = 0; s < plan->n_slots; s++) plan->offsets[s + 1] += plan->offsets[s];
    return WB_OK;
}

wb_status wb_moe_plan_host(const wb_moe_plan *plan, int32_t *next) {
    WB_TRY(wb_moe_offsets_host(plan));
    if (plan->n_slots > 0) memcpy(next, plan->offsets, (size_t)plan->n_slots * sizeof *next);
    for (int64_t i = 0; i < plan->T * plan->top_k; i++) {
        const int32_t slot = plan->pair_row[i];
        if (slot < 0) continue;
        plan->row_token[next[slot]] = (int32_t)(i / plan->top_k);
        plan->pair_row[i] = next[slot]++;
    }
    return WB_OK;
}
