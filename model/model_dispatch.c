/* model_dispatch.c - see model_dispatch.h. */
#include "model_dispatch.h"
#include "wb_dispatch_rules.h"

static int32_t *table_of(const wb_model *m, uint32_t l) {
    return (int32_t *)m->dispatch_tables.data + l * m->dispatch_length;
}

wb_status wb_model_dispatch_open(wb_model *m, wb_dispatch_policy policy) {
    const uint32_t L = m->route_model.n_moe_layers;
    m->dispatch = policy;
    if (L == 0) return WB_OK;
    return wb_dispatch_table_length(m->placement, policy, &m->dispatch_length);
}

void wb_model_dispatch_layout(wb_model *m, wb_arena *arena) {
    const int64_t length = (int64_t)m->dispatch_length;
    wb_place(arena, &m->dispatch_tables, m->route_model.n_moe_layers, length, sizeof(int32_t));
    WB_PLACE_HOST(arena, m->dispatch_host, length);
}

wb_status wb_model_dispatch_fill_all(wb_model *m) {
    for (uint32_t l = 0; l < m->route_model.n_moe_layers; l++) WB_TRY(wb_model_dispatch_fill(m, l));
    return WB_OK;
}

wb_status wb_model_dispatch_fill(wb_model *m, uint32_t l) {
    int32_t *table = m->dispatch_host;
    WB_TRY(wb_dispatch_fill_table(m->placement, m->dispatch, (uint32_t)m->rank, l, table));
    return m->device->to_device(m->device, table_of(m, l), table, m->dispatch_length * sizeof *table);
}

wb_dispatch_rule wb_model_dispatch_rule(const wb_model *m, int32_t moe_index) {
    const uint32_t l = (uint32_t)moe_index, E = m->route_model.num_experts;
    return wb_dispatch_table_rule(m->dispatch == WB_DISPATCH_DYNAMIC, table_of(m, l), E, l);
}
