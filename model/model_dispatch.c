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
    WB_TRY(wb_dispatch_table_length(m->placement, policy, &m->dispatch_length));
    if (policy != WB_DISPATCH_STATIC) return WB_OK;
    return wb_dispatch_open(m->placement, policy, (uint32_t)m->rank, &m->dispatch_rows);
}

void wb_model_dispatch_layout(wb_model *m, wb_arena *arena) {
    const int64_t length = (int64_t)m->dispatch_length;
    wb_place(arena, &m->dispatch_tables, m->route_model.n_moe_layers, length, sizeof(int32_t));
    WB_PLACE_HOST(arena, m->dispatch_host, m->dispatch == WB_DISPATCH_STATIC ? 0 : length);
}

wb_status wb_model_dispatch_fill_all(wb_model *m) {
    for (uint32_t l = 0; l < m->route_model.n_moe_layers; l++) WB_TRY(wb_model_dispatch_fill(m, l));
    return WB_OK;
}

static wb_status make_table(wb_model *m, uint32_t l, const void **table_out) {
    const wb_physical_id *slots;
    if (m->dispatch == WB_DISPATCH_STATIC) {
        WB_TRY(wb_dispatch_table(m->dispatch_rows, l, &slots));
        *table_out = slots; /* an id is an int32: dispatch_tables.c asserts it */
        return WB_OK;
    }
    WB_TRY(wb_dispatch_fill_table(m->placement, m->dispatch, (uint32_t)m->rank, l, m->dispatch_host));
    *table_out = m->dispatch_host;
    return WB_OK;
}

wb_status wb_model_dispatch_fill(wb_model *m, uint32_t l) {
    const void *table;
    WB_TRY(make_table(m, l, &table));
    return m->device->to_device(m->device, table_of(m, l), table, m->dispatch_length * sizeof(int32_t));
}

wb_dispatch_rule wb_model_dispatch_rule(const wb_model *m, int32_t moe_index) {
    const uint32_t l = (uint32_t)moe_index, E = wb_route_weighted(&m->route_model);
    return wb_dispatch_table_rule(m->dispatch == WB_DISPATCH_DYNAMIC, table_of(m, l), E, l);
}
