/* cpu_table.c - puts the ops of one instruction set into a device's table. */
#include "cpu_ops.h"

void WB_CPU(table)(wb_device *dev) {
    dev->matmul = WB_CPU(matmul);
    dev->embed_forward = WB_CPU(embed_forward);
    dev->embed_backward = WB_CPU(embed_backward);
    dev->rmsnorm_forward = WB_CPU(rmsnorm_forward);
    dev->rmsnorm_backward = WB_CPU(rmsnorm_backward);
    dev->rope = WB_CPU(rope);
    dev->kv_write = WB_CPU(kv_write);
    dev->attention_forward = WB_CPU(attention_forward);
    dev->attention_backward = WB_CPU(attention_backward);
    dev->topk = WB_CPU(topk);
    dev->gate_forward = WB_CPU(gate_forward);
    dev->gate_backward = WB_CPU(gate_backward);
    dev->moe_sort = WB_CPU(moe_sort);
    dev->gather_rows = WB_CPU(gather_rows);
    dev->moe_combine = WB_CPU(moe_combine);
    dev->moe_combine_backward = WB_CPU(moe_combine_backward);
    dev->swiglu_forward = WB_CPU(swiglu_forward);
    dev->swiglu_backward = WB_CPU(swiglu_backward);
    dev->add = WB_CPU(add);
    dev->bias_forward = WB_CPU(bias_forward);
    dev->bias_backward = WB_CPU(bias_backward);
    dev->clamp = WB_CPU(clamp);
    dev->clamp_backward = WB_CPU(clamp_backward);
    dev->logprob_forward = WB_CPU(logprob_forward);
    dev->logprob_backward = WB_CPU(logprob_backward);
    dev->sample = WB_CPU(sample);
    dev->sum_squares = WB_CPU(sum_squares);
    dev->adamw = WB_CPU(adamw);
    dev->cast = WB_CPU(cast);
}
