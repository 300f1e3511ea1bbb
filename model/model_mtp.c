/* model_mtp.c - see model_mtp.h. Refuses: what the layers compute (layers/mtp.c), when (rollout). */
#include "model_mtp.h"
#include "config.h"
#include "model_dispatch.h"
#include "registry.h"

#include <stdlib.h>
#include <string.h>

/* Every layer is an MoE layer, as the decoder's last one, and has attention. */
static wb_config config_of(const wb_config *decoder) {
    wb_config config = *decoder;
    config.n_layers = decoder->n_mtp_layers;
    config.n_mtp_layers = 0;
    memset(config.moe_layer_mask, 0, sizeof config.moe_layer_mask);
    memset(config.delta.layer_mask, 0, sizeof config.delta.layer_mask);
    for (int32_t l = 0; l < config.n_layers; l++) config.moe_layer_mask[l / 64] |= UINT64_C(1) << (l % 64);
    return config;
}

/* A slot an expert, in blocks over the ranks that are not dead, in all layers. */
static wb_status open_placement(wb_model *mtp, const uint8_t *dead) {
    const uint32_t E = wb_route_weighted(&mtp->route_model), R = (uint32_t)mtp->n_ranks;
    uint32_t *slots_of_rank = NULL, n_live = 0, live = 0;
    for (uint32_t r = 0; r < R; r++) n_live += !dead || !dead[r];
    WB_TRY(WB_NEW(slots_of_rank, R, "placement of MTP layers"));
    for (uint32_t r = 0; r < R; r++) {
        if (dead && dead[r]) continue;
        slots_of_rank[r] = wb_block_begin(E, n_live, live + 1) - wb_block_begin(E, n_live, live);
        live++;
    }
    const wb_topology topology = {
        .n_ranks = R, .n_nodes = 1, .n_slots = E, .slots_of_rank = slots_of_rank, .dead = dead};
    const wb_status status = wb_placement_open(&topology, mtp->route_model.n_moe_layers, E, &mtp->placement);
    free(slots_of_rank);
    return status;
}

static wb_status build(wb_model *mtp, const uint8_t *dead) {
    WB_TRY(wb_model_describe_routes(mtp));
    WB_TRY(open_placement(mtp, dead));
    WB_TRY(wb_model_dispatch_open(mtp, WB_DISPATCH_STATIC));
    return wb_architecture_build(mtp);
}

wb_status wb_mtp_build(wb_model *model, const wb_placement *placement) {
    wb_model *mtp = NULL;
    if (model->config.n_mtp_layers == 0) return WB_OK;
    WB_TRY(WB_NEW(mtp, 1, "MTP layers"));
    mtp->decoder = model;
    mtp->config = config_of(&model->config);
    mtp->family = model->family;
    mtp->device = mtp->memory.device = model->device;
    mtp->comm = model->comm;
    mtp->n_ranks = model->n_ranks;
    mtp->rank = model->rank;
    mtp->dtype = model->dtype;
    mtp->activations = model->activations;
    mtp->inference_only = model->inference_only;
    model->mtp = mtp;
    const wb_status status = build(mtp, placement ? wb_placement_topology(placement)->dead : NULL);
    return status == WB_OK ? status : wb_fail_context(status, "MTP layers");
}

void wb_mtp_close(wb_model *mtp) {
    if (!mtp) return;
    wb_workspace_close(&mtp->memory);
    wb_dispatch_close(mtp->dispatch_rows);
    wb_placement_close(mtp->placement);
    free(mtp->copied.transfers);
    free(mtp);
}

void wb_mtp_layout(wb_model *model, wb_arena *arena) {
    wb_model *mtp = model->mtp;
    if (!mtp) return;
    wb_arena_part(arena, "weights");
    wb_architecture_layout(mtp, arena);
    wb_arena_part(arena, "tables");
    wb_model_dispatch_layout(mtp, arena);
    mtp->cos_table = model->cos_table;
    mtp->sin_table = model->sin_table;
}

wb_status wb_mtp_fill_tables(wb_model *model) {
    return model->mtp ? wb_model_dispatch_fill_all(model->mtp) : WB_OK;
}
