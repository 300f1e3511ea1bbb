/* wb_device.h - the op table: what a backend can do, as the rooms above call it (not installed: outside, a
 * device is opaque).
 *
 * Owns: the one list of ops, from which come the table, the declarations of both backends, the names in
 * messages and the check that a device has what its user needs. Refuses: contracts (at the type of each op's
 * function, in wb_ops_*.h, and in wb_kernels.h for those of memory), implementations (cpu/, cuda/), policy.
 *
 * To add an op: its type wb_<op>_fn in the wb_ops_*.h of its kin, its name here, and its function in each
 * backend that has it. */
#ifndef WB_DEVICE_H
#define WB_DEVICE_H

#include "wb_mailbox.h"

#ifdef __cplusplus
extern "C" {
#endif

// clang-format off: an op a line
/* Every backend has these. */
#define WB_MEMORY_OPS(X) \
    X(mem_alloc)         \
    X(mem_free)          \
    X(host_alloc)        \
    X(host_free)         \
    X(to_device)         \
    X(to_host)           \
    X(event_open)        \
    X(event_close)       \
    X(start_to_host)     \
    X(event_look)        \
    X(event_wait)        \
    X(copy)              \
    X(zero)              \
    X(digest)            \
    X(reserve_scratch)

#define WB_COMPUTE_OPS(X)       \
    X(matmul)                   \
    X(embed_forward)            \
    X(embed_backward)           \
    X(rmsnorm_forward)          \
    X(rmsnorm_backward)         \
    X(add_rmsnorm)              \
    X(gated_rmsnorm_forward)    \
    X(gated_rmsnorm_backward)   \
    X(rope)                     \
    X(gather_rows)              \
    X(scatter_rows)             \
    X(copy_columns)             \
    X(copy_heads)               \
    X(swiglu_forward)           \
    X(swiglu_backward)          \
    X(add)                      \
    X(add_gated_forward)        \
    X(add_gated_backward)       \
    X(sigmoid_gate_forward)     \
    X(sigmoid_gate_backward)    \
    X(bias_forward)             \
    X(bias_backward)            \
    X(clamp)                    \
    X(clamp_backward)           \
    X(cast)                     \
    X(hyper_pre_forward)        \
    X(hyper_pre_backward)       \
    X(hyper_post_forward)       \
    X(hyper_post_backward)      \
    X(attention_forward)        \
    X(attention_backward)       \
    X(attention_prepare)        \
    X(kv_write)                 \
    X(short_conv_forward)       \
    X(short_conv_backward)      \
    X(gated_delta_forward)      \
    X(gated_delta_backward)     \
    X(compress_forward)         \
    X(compress_backward)        \
    X(indexer_topk)             \
    X(entry_attention_forward)  \
    X(entry_attention_backward) \
    X(topk)                     \
    X(gate_forward)             \
    X(gate_backward)            \
    X(copy_ids)                 \
    X(check_routes)             \
    X(moe_plan)                 \
    X(moe_group)                \
    X(grouped_matmul)           \
    X(grouped_matmul_backward)  \
    X(grouped_bias_forward)     \
    X(grouped_bias_backward)    \
    X(grouped_swiglu_forward)   \
    X(grouped_swiglu_backward)  \
    X(moe_combine)              \
    X(moe_combine_backward)     \
    X(moe_own_forward)          \
    X(moe_own_backward)         \
    X(logprob_forward)          \
    X(logprob_backward)         \
    X(sample)                   \
    X(sum_squares)              \
    X(adamw)

/* wb_shared_memory.h, wb_mailbox.h; a backend has all of these or none. */
#define WB_MAILBOX_OPS(X) \
    X(memory_share)       \
    X(memory_attach)      \
    X(memory_detach)      \
    X(memory_unshare)     \
    X(memory_put)         \
    X(memory_settle)      \
    X(mailbox_send)       \
    X(mailbox_receive)    \
    X(mailbox_return)     \
    X(mailbox_wait)

/* Of a backend whose products read weights faster in an order of their own: the CPU. Who calls one looks
 * whether it is there. */
#define WB_LAYOUT_OPS(X) X(pack_weights)
// clang-format on

#define WB_OPS(X) WB_MEMORY_OPS(X) WB_COMPUTE_OPS(X) WB_MAILBOX_OPS(X) WB_LAYOUT_OPS(X)

/* A backend that lacks an op leaves its pointer NULL.
 *
 * What an op finds wrong in the content of its operands, such as an id that is no expert's, is a fault
 * (device_fault.h). On the CPU the op fails. On CUDA it lies in a word of the device, where the first one
 * stays until to_host, event_wait, or a to_device that waits, returns it in its place: with the results of a
 * step, where the host waits anyway. Once returned it is gone; what was computed meanwhile is of no use. */
struct wb_device {
    wb_backend backend;
    /* "cpu x86-64-v3", "cuda"; static */
    const char *name;
    /* CPU: OpenMP threads of an op */
    int threads;
    /* CUDA: cudaStream_t on which all runs; owner: the device or its caller, see wb_device_open_cuda */
    void *stream;
    void (*close)(wb_device *dev);
    /* what workspaces (wb_workspace.h) have of its memory, and the most that they had at once */
    size_t held_bytes, peak_bytes;
    /* What lies on the stream is worth nothing, for the reason `why`: the next call that waits for it returns
     * PEER, once, and ops on it that wait for other devices (wb_mailbox.h) do so no longer. Of any thread.
     * NULL where nothing lies on a stream. */
    void (*lose)(wb_device *dev, const char *why);

    /* What ops between begin and end would do is not done but becomes a graph, which a launch does, as often
     * as it is launched, with the arguments that the ops had: addresses and sizes are those of the capture,
     * what lies at the addresses is that of the launch. Between begin and end nothing is waited for,
     * allocated or copied between host and device. end, which also follows an op that failed, gives the graph
     * or, where it fails, none. Owner: the caller, until free, which waits for the stream and for which NULL
     * is a no-op. All NULL: a device without graphs. */
    wb_status (*graph_begin)(wb_device *dev);
    wb_status (*graph_end)(wb_device *dev, void **graph_out);
    wb_status (*graph_launch)(wb_device *dev, void *graph);
    void (*graph_free)(wb_device *dev, void *graph);
    /* Grows when memory that ops have of their own has moved: graphs from before are of no use. */
    uint64_t scratch_moves;

#define WB_OP_FIELD(op) wb_##op##_fn *op;
    WB_OPS(WB_OP_FIELD)
#undef WB_OP_FIELD
};

/* ---- what a user of a device needs --------------------------------------------------------------- */

/* WB_OP_matmul and so on: the ops by number. */
#define WB_OP_NUMBER(op) WB_OP_##op,
typedef enum wb_op { WB_OPS(WB_OP_NUMBER) WB_OP_COUNT } wb_op;

/* "matmul"; static. */
const char *wb_op_name(wb_op op);

/* Checks at open that a device has every op that will be called, because an op that is not there is a call
 * through NULL in the middle of a step. needed: host [count]; a list begins with WB_MEMORY_OPS(WB_OP_NUMBER)
 * as a rule. UNSUPPORTED names `who` needs it, the device and the first op that it lacks. */
wb_status wb_device_require(const wb_device *device, const char *who, const wb_op *needed, size_t count);

#ifdef __cplusplus
}
#endif
#endif
