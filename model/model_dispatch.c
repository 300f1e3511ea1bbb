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
    const int64_t length = (int64_t)m->dispatch_length;
    WB_TRY(wb_reserve(&m->memory, &m->dispatch_tables, L, length, sizeof(int32_t)));
    WB_TRY(wb_reserve_host(&m->memory, &m->dispatch_host, length, sizeof(int32_t), "dispatch table"));
    for (uint32_t l = 0; l < L; l++) WB_TRY(wb_model_dispatch_fill(m, l));
    return WB_OK;
}

wb_status wb_model_dispatch_fill(wb_model *m, uint32_t l) {
    int32_t *table = m->dispatch_host.data;
    WB_TRY(wb_dispatch_fill_table(m->placement, m->dispatch, (uint32_t)wb_comm_rank(m->comm), l, table));
    return m->device->to_device(m->device, table_of(m, l), table, m->dispatch_length * sizeof *table);
}

wb_dispatch_rule wb_model_dispatch_rule(const wb_model *m, int32_t moe_index) {
    const uint32_t l = (uint32_t)moe_index, E = m->route_model.num_experts;
    if (m->dispatch == WB_DISPATCH_STATIC) return wb_dispatch_static_rule(table_of(m, l));
    return wb_dispatch_dynamic_rule(table_of(m, l), E, l);
}
