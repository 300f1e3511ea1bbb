/* wb_cost_model.h - what a machine costs: seconds and bytes of tokens, experts and transfers, for solvers,
 * move plans and the simulator. Online. */
#ifndef WB_COST_MODEL_H
#define WB_COST_MODEL_H

#include "wb_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Seconds and bytes of one forward pass of a MoE layer on one rank:
 *
 *   compute              = tokens x seconds_per_token + experts that got a token x seconds_per_expert
 *   dispatch and combine = 2 x bytes_per_token x tokens sent off the rank / bytes per second of the link
 *
 * Under dispatch policies that give expectations (dynamic, fake) a slot may get less than one token: it
 * counts as that part of an expert, and the rank's sum of experts is rounded up to a whole number, since a
 * rank reads an expert's weights either whole or not at all.
 *
 * Receiving and sending, inside the node and out of it, go on at the same time. A layer ends with its slowest
 * rank; a step is the sum over layers and micro-batches.
 *
 * A description, not an options struct: callers fill every field, and fields are never added. */
typedef struct wb_cost_model {
    double seconds_per_token;        /* one token through one expert */
    double seconds_per_expert;       /* reading its weights, once a pass in which it has tokens */
    double bytes_per_token;          /* one token's hidden state, one way */
    double expert_bytes;             /* all tensors of one expert */
    double node_bytes_per_second;    /* of one rank, to and from ranks of its node, each direction */
    double network_bytes_per_second; /* of one rank, to and from other nodes, each direction */
    double local_bytes_per_second;   /* copies inside a rank: bytes copied, each read and written once */
    double seconds_per_group;        /* latency of a group of transfers (a move plan's) */
} wb_cost_model;

/* An expert of three matrices of hidden x expert_width, bf16, forward on an H200: 400 TFLOP/s, 4.3 TB/s,
 * NVLink 400 GB/s, network 50 GB/s, 20 us a group. */
WB_API wb_cost_model wb_cost_model_of(uint32_t hidden, uint32_t expert_width);

/* Of DeepSeek-V3's: 7168 and 2048. */
WB_API wb_cost_model wb_cost_model_default(void);

#ifdef __cplusplus
}
#endif
#endif
