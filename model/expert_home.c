/* expert_home.c - see expert_home.h. */
#include "expert_home.h"

int32_t wb_home_rank(int32_t n_experts, int32_t n_ranks, int32_t expert) {
    return (int32_t)wb_block_of((uint32_t)n_experts, (uint32_t)n_ranks, (uint32_t)expert);
}

int64_t wb_expert_max_homes(int32_t n_experts, int32_t n_ranks) {
    return ((int64_t)n_experts + n_ranks - 1) / n_ranks;
}

uint32_t wb_expert_lead(const wb_model *model, const wb_layer_map *map, int32_t expert) {
    const uint32_t begin = map->replica_begin[expert], end = map->replica_begin[expert + 1];
    const int32_t home = wb_home_rank(wb_config_weighted(&model->config), model->n_ranks, expert);
    for (uint32_t i = begin; i < end; i++)
        if (wb_model_rank_of(model, map->replicas[i]) == home) return i - begin;
    return 0;
}

wb_tensor wb_model_lead(const wb_model *model, int32_t i) {
    const wb_tensor *tensor = &model->tensors[i];
    if (tensor->expert < 0) return wb_model_replica(model, i, 0);
    const uint32_t layer = (uint32_t)model->params[tensor->param].moe_layer;
    const wb_layer_map map = wb_placement_layer(model->placement, layer);
    return wb_model_replica(model, i, (int32_t)wb_expert_lead(model, &map, tensor->expert));
}
