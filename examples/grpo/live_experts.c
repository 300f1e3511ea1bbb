/* live_experts.c - --eplb live: how the rollout's experts are managed, and what that did. Refuses: moving
 * them (wb_rebalance.h), the policy's experts, which follow with an update (train_step.c). */
#include "grpo.h"

#include <inttypes.h>

/* Of a rank on a CPU: products at 10 GFLOP/s, copies at 4 GB/s, messages at 1 GB/s and 50 us each. */
static wb_cost_model cpu_cost(const wb_config *config) {
    wb_cost_model cost = wb_cost_model_of((uint32_t)config->hidden_size, (uint32_t)config->expert_width);
    cost.seconds_per_token = 6.0 * config->hidden_size * config->expert_width / 10e9;
    cost.seconds_per_expert = cost.expert_bytes / 4e9;
    cost.node_bytes_per_second = cost.network_bytes_per_second = 1e9;
    cost.local_bytes_per_second = 4e9;
    cost.seconds_per_group = 50e-6;
    return cost;
}

static wb_rebalance_options manager_options(const options *o, const wb_config *config, bool cpu) {
    wb_rebalance_options manager = wb_rebalance_options_default();
    manager.every = (uint32_t)o->rebalance_every;
    if (o->layers_per_chunk > 0) manager.layers_per_chunk = o->layers_per_chunk;
    manager.move.cost = cpu ? cpu_cost(config)
                            : wb_cost_model_of((uint32_t)config->hidden_size, (uint32_t)config->expert_width);
    manager.n_weightless = (uint32_t)config->n_weightless;
    return manager;
}

wb_status live_experts_open(const options *o, wb_model *rollout, wb_rebalance **manager_out) {
    const wb_expert_store store = wb_model_expert_store(rollout);
    const bool cpu = wb_model_device(rollout)->backend == WB_BACKEND_CPU;
    const wb_rebalance_options manager = manager_options(o, wb_model_config(rollout), cpu);
    return wb_rebalance_open(&store, &manager, manager_out);
}

wb_status live_experts_measure(const options *o, const wb_config *config, const wb_model_options *rollout,
                               size_t *device_bytes_out, size_t *host_bytes_out) {
    const wb_rebalance_options manager = manager_options(o, config, true);
    uint32_t layers = 0;
    size_t slot_bytes;
    for (int32_t l = 0; l < config->n_layers; l++) layers += wb_config_is_moe(config, l);
    WB_TRY(wb_model_measure_slot(config, rollout, &slot_bytes));
    return wb_rebalance_measure(&manager, layers, (uint32_t)wb_config_weighted(config), slot_bytes,
                                device_bytes_out, host_bytes_out);
}

wb_status live_experts_report(const wb_rebalance *manager, const wb_rebalance_stats *before, wb_comm *comm,
                              report *r, step_metrics *m) {
    const wb_rebalance_stats now = wb_rebalance_get_stats(manager);
    m->epoch = now.epoch;
    m->moved_bytes = (double)(now.bytes - before->bytes);
    m->seconds_rebalance = now.seconds - before->seconds;
    if (now.failures > before->failures) report_line(r, "experts stay where they were: %s", now.failure);
    /* Of the latest decision, which may be one after the moves that has solved nothing. */
    if (now.rebalances > before->rebalances && now.expected_balancedness > 0)
        report_line(r, "experts have moved, epoch %" PRIu64 ": balance of the counts %.2f, before %.2f",
                    now.epoch, now.expected_balancedness, now.balancedness);
    else if (now.rebalances > before->rebalances)
        report_line(r, "experts have moved, epoch %" PRIu64 ": balance of the counts since then %.2f",
                    now.epoch, now.balancedness);
    return wb_comm_all_reduce_f64(comm, &m->moved_bytes, 1);
}
