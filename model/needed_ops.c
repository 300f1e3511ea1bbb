/* needed_ops.c - see needed_ops.h. A layer that begins to call another op adds it here. */
#include "needed_ops.h"
#include "wb_check.h"

/* A layer forward, and what lies before and after the layers. */
static const wb_op forward_ops[] = {
    WB_MEMORY_OPS(WB_OP_NUMBER) WB_OP_matmul,
    WB_OP_embed_forward,
    WB_OP_rmsnorm_forward,
    WB_OP_add_rmsnorm,
    WB_OP_rope,
    WB_OP_gather_rows,
    WB_OP_copy_columns,
    WB_OP_kv_write,
    WB_OP_swiglu_forward,
    WB_OP_add,
    WB_OP_add_gated_forward,
    WB_OP_bias_forward,
    WB_OP_attention_prepare,
    WB_OP_attention_forward,
    WB_OP_hyper_pre_forward,
    WB_OP_hyper_post_forward,
    WB_OP_compress_forward,
    WB_OP_indexer_topk,
    WB_OP_entry_attention_forward,
    WB_OP_topk,
    WB_OP_gate_forward,
    WB_OP_moe_plan,
    WB_OP_moe_group,
    WB_OP_grouped_matmul,
    WB_OP_grouped_bias_forward,
    WB_OP_grouped_swiglu_forward,
    WB_OP_moe_combine,
    WB_OP_moe_own_forward,
};

/* What training's forward calls besides. */
static const wb_op logprob_ops[] = {WB_OP_logprob_forward};

/* A forward that keeps its steps, and the backward. */
static const wb_op backward_ops[] = {
    WB_OP_clamp,
    WB_OP_embed_backward,
    WB_OP_scatter_rows,
    WB_OP_rmsnorm_backward,
    WB_OP_swiglu_backward,
    WB_OP_add_gated_backward,
    WB_OP_bias_backward,
    WB_OP_clamp_backward,
    WB_OP_attention_backward,
    WB_OP_hyper_pre_backward,
    WB_OP_hyper_post_backward,
    WB_OP_compress_backward,
    WB_OP_entry_attention_backward,
    WB_OP_gate_backward,
    WB_OP_moe_combine_backward,
    WB_OP_moe_own_backward,
    WB_OP_grouped_matmul_backward,
    WB_OP_grouped_bias_backward,
    WB_OP_grouped_swiglu_backward,
    WB_OP_logprob_backward,
    WB_OP_cast,
};

#define REQUIRE(device, who, ops) wb_device_require(device, who, ops, sizeof(ops) / sizeof *(ops))

wb_status wb_infer_check_device(const wb_device *device) {
    return REQUIRE(device, "inference", forward_ops);
}

wb_status wb_train_check_device(const wb_device *device, bool backward) {
    WB_TRY(REQUIRE(device, "training", forward_ops));
    WB_TRY(REQUIRE(device, "training", logprob_ops));
    return backward ? REQUIRE(device, "training", backward_ops) : WB_OK;
}
