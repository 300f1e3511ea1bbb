/* dispatch.c - the names of the policies, the size of their tables, and the handle that dispatches one rank's
 * tokens. Refuses: what is in the tables (dispatch_tables.c), rows (dispatch_rows.c), how shares are found
 * (dispatch_quota.c). */
#include "dispatch/dispatch_handle.h"

#include <stdlib.h>
#include <string.h>

static const char *const policy_names[] = {"static", "dynamic", "quota", "fake"};
#define N_POLICIES (sizeof policy_names / sizeof policy_names[0])

const char *wb_dispatch_policy_name(wb_dispatch_policy policy) {
    return (size_t)policy < N_POLICIES ? policy_names[policy] : "unknown";
}

wb_status wb_dispatch_policy_parse(const char *name, wb_dispatch_policy *policy_out) {
    for (size_t i = 0; i < N_POLICIES; i++) {
        if (strcmp(policy_names[i], name) != 0) continue;
        *policy_out = (wb_dispatch_policy)i;
        return WB_OK;
    }
    return wb_fail(WB_INVALID_ARGUMENT,
                   "dispatch policy: expected static, dynamic, quota or fake, found '%s'", name);
}

/* ---- tables ---------------------------------------------------------------------------------- */

/* Of one layer. fake: room for the slots that hold an expert; quota goes by counts. */
static size_t table_length(const wb_placement *placement, wb_dispatch_policy policy) {
    size_t E = placement->n_experts, S = placement->topology.n_slots;
    const size_t lengths[N_POLICIES] = {
        [WB_DISPATCH_STATIC] = E, [WB_DISPATCH_DYNAMIC] = E + 1 + S, [WB_DISPATCH_FAKE] = S};
    return lengths[policy];
}

wb_status wb_dispatch_table_length(const wb_placement *placement, wb_dispatch_policy policy,
                                   size_t *length_out) {
    if (policy != WB_DISPATCH_STATIC && policy != WB_DISPATCH_DYNAMIC)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "dispatch table for kernels: policy: expected static or dynamic, found %s",
                       wb_dispatch_policy_name(policy));
    *length_out = table_length(placement, policy);
    return WB_OK;
}

/* ---- the handle ------------------------------------------------------------------------------ */

static wb_status allocate(wb_dispatch *d) {
    size_t L = d->placement->n_layers, E = d->placement->n_experts, S = d->placement->topology.n_slots;
    bool fixed = d->policy == WB_DISPATCH_STATIC, quota = d->policy == WB_DISPATCH_QUOTA;
    bool fake = d->policy == WB_DISPATCH_FAKE;
    size_t table = table_length(d->placement, d->policy);
    size_t ranks = fake ? (size_t)d->placement->topology.n_ranks + 1 : 0;
    WB_TRY(WB_OWN(&d->memory, d->layers, L, "dispatch layers"));
    WB_TRY(WB_OWN(&d->memory, d->tables, L * table, "dispatch tables"));
    WB_TRY(WB_OWN(&d->memory, d->rank_begins, L * ranks, "dispatch tables"));
    WB_TRY(WB_OWN(&d->memory, d->parts, quota ? L * S : 0, "quota parts"));
    WB_TRY(WB_OWN(&d->memory, d->progress, quota ? L * E : 0, "quota parts"));
    WB_TRY(WB_OWN(&d->memory, d->tally, quota ? E : 0, "quota parts"));
    if (fixed || quota) WB_TRY(wb_dispatch_frame_open(d->placement, &d->memory, &d->frame));
    for (size_t layer = 0; layer < L; layer++)
        d->layers[layer] = (wb_dispatch_layer){.table = d->tables + layer * table,
                                               .rank_begin = d->rank_begins + layer * ranks,
                                               .turn = d->rank,
                                               .parts = d->parts + (quota ? layer * S : 0),
                                               .progress = d->progress + (quota ? layer * E : 0)};
    return WB_OK;
}

wb_status wb_dispatch_open(const wb_placement *placement, wb_dispatch_policy policy, uint32_t rank,
                           wb_dispatch **dispatch_out) {
    if ((size_t)policy >= N_POLICIES)
        return wb_fail(WB_INVALID_ARGUMENT, "dispatch: policy: expected 0..%zu, found %d", N_POLICIES - 1,
                       (int)policy);
    WB_TRY(wb_dispatch_check_rank(placement, rank));
    wb_dispatch *d = NULL;
    WB_TRY(WB_NEW(d, 1, "dispatch"));
    d->placement = placement;
    d->policy = policy;
    d->rank = rank;
    wb_status status = allocate(d);
    if (status != WB_OK) {
        wb_dispatch_close(d);
        return status;
    }
    *dispatch_out = d;
    return WB_OK;
}

void wb_dispatch_close(wb_dispatch *dispatch) {
    if (!dispatch) return;
    wb_owner_close(&dispatch->memory);
    free(dispatch);
}
