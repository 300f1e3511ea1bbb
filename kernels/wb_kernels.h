/* wb_kernels.h - the devices that run the ops of a Mixture-of-Experts transformer, their memory, and what all
 * ops have in common. It includes the headers that have the ops, forward and backward: the type of each one's
 * function, with its contract.
 *
 *     header               ops
 *     wb_operands.h        none: rows of activations and matrices of weights, which they are called with
 *     wb_ops_rows.h        products, norms, rotary embedding, element by element; hyper-connections
 *     wb_ops_attention.h   attention over a paged pool of keys and values
 *     wb_ops_recurrent.h   from token to token of a sequence: short convolution, gated delta rule
 *     wb_ops_entries.h     attention over compressed entries: compressor, indexer
 *     wb_ops_moe.h         routing; the MoE layer from a token's ids to its experts and back
 *     wb_ops_sampling.h    log-probabilities, sampling
 *     wb_ops_optimizer.h   sums of squares, AdamW
 *
 * Owns: what every backend, CPU and CUDA, implements. Refuses: files, models, scheduling, policy.
 *
 * Ops: wb_<op>_fn is the type of the function of op <op>: what a backend implements and what the rooms above
 * call. The first argument is the device; `w` are weights, `d...` gradients; "+=" accumulates, "=" writes.
 * All return INVALID_ARGUMENT or DEVICE (Errors).
 *
 * Memory: pointers marked "device" belong to the backend (on the CPU they are ordinary memory); callers never
 * dereference them, they call ops, upload and download. Pointers marked "host" are ordinary memory. An op
 * keeps no pointer of its caller. Layout: row-major, rows contiguous unless a stride is given.
 *
 * Numbers: activations and their gradients (wb_rows) and matrices of weights (wb_weight) are f32 or bf16. All
 * else is f32: logits, gate weights, vectors of weights, statistics of norms, softmax, log-probabilities,
 * losses, gradients of weights, moments. Compute is f32. An op widens a bf16 operand, which is exact,
 * computes on it what it computes on f32, in the same order, and rounds each element that it writes to a bf16
 * operand once, at the end, to nearest even. Nothing in between is rounded. So
 *   - matmul rounds c after the last k; when it accumulates, the widened c begins the chain
 *   - on CUDA a product of two bf16 matrices (matmul and the grouped ones) is made by tensor cores: a chain
 *     over ascending k of steps of 16, each of which sums 16 products and the sum so far at once, and cuts
 *     instead of rounding: off by less than (K / 16 + 2) 2^-17 of the sum of the products' sizes. What it is
 *     added to, it is added to at the end, and a sum below 2^-126 may be 0
 *   - on CUDA the backward of attention of bf16 heads of 64 and 128, and of 192 with values of 128, rounds
 *     weights and gradients of scores where they multiply; on sm_90a, with log_sums and heads of 64 and 128,
 *     it takes <dout, out>, of out as it was rounded, for the sum of weights times their gradients
 *   - on CUDA swiglu of bf16 has a sigmoid that is off by 2^-20 of itself at most
 *   - a product of f32 and bf16 is made in f32, which is slow on CUDA: so where activations are bf16 a model
 *     rounds gradients of logits, the head's and the routers', once (cast) before the two products that they
 *     enter. Training with bf16 weights then has no other mixed product
 *   - rmsnorm rounds y and dx, not the mean of the squares; swiglu its product, not silu(gate)
 *   - on CUDA attention of bf16 heads of 64 and 128, and of 192 with values of 128, is made by tensor cores
 *     too, and the forward over latents of 576 with values of 512 in them: weights of keys are rounded where
 *     they multiply values. On sm_90a sums of heads of 64 and 128 go over blocks of 128 keys, and splits of
 *     1,024 at absolute positions are folded in rising order, so that a split can be computed by itself
 *   - on CUDA dw of rmsnorm and gated_rmsnorm of bf16 rows is summed in parts of 128 rows, the first of which
 *     dw begins, and then over the parts, both ascending
 *   - rope, add, bias and clamp round the new element, and an op that makes several such steps at once rounds
 *     behind each of them; embed rounds y where the table is f32
 *   - attention rounds out after the division by the softmax's sum, no score and no probability; dq; and dk
 *     and dv after the sum over all queries of the call, which the widened dk and dv begin
 *   - attention over entries rounds as attention does, dk and dentries after the sum over all queries; a
 *     compressor rounds an entry, not what a state has of it, and dbias is summed before dgates are rounded
 *   - moe_combine rounds y after the last choice, its backward each element of drows
 *   - gather, scatter, and kv_write between like dtypes, move bits.
 * The rows of one call have one dtype unless the op says otherwise; any other mixture is INVALID_ARGUMENT,
 * with op, operand, expected and found.
 *
 * Batch invariance: the result for one row (token) is the same bits whatever other rows are in the call,
 * however a prompt is cut into calls, and for any thread count. Reductions run in a fixed order that depends
 * on the reduced length alone: matmul is one fused-multiply-add chain over ascending k for each element;
 * norms, softmax and attention sum in a fixed lane order over ascending index. Gradients of shared weights
 * sum over tokens in ascending order, in one chain but where Numbers says in parts.
 *
 * Order: ops of one device are called from one thread at a time. On the CPU an op is done on return. On CUDA
 * every op and every copy is enqueued on the device's one stream and returns; what is done on return
 * nevertheless is said at the op. None is collective.
 *
 * Errors: ops check what is cheap (dtype, K <= E) and return INVALID_ARGUMENT; shapes are the caller's
 * promise. T = 0 is valid everywhere. An id that is no expert's, a token that the table does not have, or
 * logits that cannot be sampled from, are INVALID_ARGUMENT with op, row and what was found: on the CPU from
 * the op; on CUDA, where the op has returned, from the next download, or the next wait for one, which is then
 * the first that such an op came before. On CUDA, a fault of a kernel itself shows there too, as DEVICE.
 */
#ifndef WB_KERNELS_H
#define WB_KERNELS_H

#include "wb_operands.h"
#include "wb_ops_attention.h"
#include "wb_ops_entries.h"
#include "wb_ops_moe.h"
#include "wb_ops_optimizer.h"
#include "wb_ops_recurrent.h"
#include "wb_ops_rows.h"
#include "wb_ops_sampling.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- devices ------------------------------------------------------------------------------------- */

typedef enum wb_backend { WB_BACKEND_CPU, WB_BACKEND_CUDA } wb_backend;

/* The CPU backend, the best instruction set that this processor has. `threads` 0: all that OpenMP would
 * use. */
WB_API wb_status wb_device_open_cpu(int threads, wb_device **device_out);

/* The CUDA backend on device `index`. Its ops give the bits of the CPU's, but on bf16 for products of two
 * matrices, swiglu, attention of heads of 64 and 128, of 192 with values of 128, and the forward over latents
 * of 576, and the norms' dw (Numbers, above). Some need memory of their own, which grows to the largest use
 * so far and goes with the device.
 *
 * `stream`: a cudaStream_t of device `index` that the caller owns, on which everything of this device then
 * runs, in order with what the caller enqueues there itself; it must outlive the device, and it is not to be
 * in capture during this call. NULL: the device makes a stream, owns it and destroys it; that stream is
 * ordered with no other one, CUDA's default stream included, so that a caller whose data come from another
 * stream has to wait for them first. The default stream itself is named by cudaStreamLegacy or
 * cudaStreamPerThread, not by NULL.
 *
 * Every call for this device makes it the calling thread's current CUDA device, and leaves it so.
 * UNSUPPORTED, with the reason, where Waybill was built without CUDA or no such device is there;
 * INVALID_ARGUMENT for a stream of another device. */
WB_API wb_status wb_device_open_cuda(int index, void *stream, wb_device **device_out);

/* The CUDA devices of this machine: 0..n - 1 are the indices above. 0 where Waybill was built without CUDA or
 * there is no driver. */
WB_API int wb_device_count_cuda(void);

/* CUDA: waits for what is on the stream; a borrowed one is left as it is. NULL is a no-op. */
WB_API void wb_device_close(wb_device *device);

WB_API wb_backend wb_device_backend(const wb_device *device);

/* "cpu x86-64-v3", "cuda"; static. */
WB_API const char *wb_device_name(const wb_device *device);

/* 64-byte aligned, uninitialised memory of the device; 0 bytes give a valid pointer. Owner: the caller, until
 * wb_device_free. CUDA: not ordered with the stream, and usable on return. OUT_OF_MEMORY. */
WB_API wb_status wb_device_alloc(wb_device *device, size_t bytes, void **device_out);

/* CUDA: waits for what is on the stream, so that no op still uses the memory. NULL is a no-op. */
WB_API void wb_device_free(wb_device *device, void *memory);

/* memory[bytes] (device) = host[bytes]. On return `host` has been read; on CUDA the copy lies on the stream
 * and need not be done. */
WB_API wb_status wb_device_upload(wb_device *device, void *memory, const void *host, size_t bytes);

/* host[bytes] = memory[bytes] (device), after all that is on the stream, and done on return. CUDA: also
 * INVALID_ARGUMENT or DEVICE of any op before it, once. */
WB_API wb_status wb_device_download(wb_device *device, void *host, const void *memory, size_t bytes);

/* ---- memory -------------------------------------------------------------------------------------- */

/* The contracts are those of wb_device_alloc, _free, _upload and _download. */
typedef wb_status wb_mem_alloc_fn(wb_device *dev, size_t bytes, void **device_out);
typedef void wb_mem_free_fn(wb_device *dev, void *device);
typedef wb_status wb_to_device_fn(wb_device *dev, void *device, const void *host, size_t bytes);
typedef wb_status wb_to_host_fn(wb_device *dev, void *host, const void *device, size_t bytes);

/* 64-byte aligned, uninitialised host memory that to_device and to_host copy from and to fastest; 0 bytes
 * give a valid pointer. CPU: ordinary memory. CUDA: pinned memory, of which a machine has less, for what is
 * copied again and again; to_device returns when its copy from there is done. Owner: the caller, until
 * host_free, for which NULL is a no-op. OUT_OF_MEMORY. */
typedef wb_status wb_host_alloc_fn(wb_device *dev, size_t bytes, void **host_out);
typedef void wb_host_free_fn(wb_device *dev, void *host);

/* A place on the stream, to be waited for without waiting for what comes after it. CPU: nothing. Owner: the
 * caller, until event_close, for which NULL is a no-op and before which it is waited for. OUT_OF_MEMORY. */
typedef wb_status wb_event_open_fn(wb_device *dev, void **event_out);
typedef void wb_event_close_fn(wb_device *dev, void *event);

/* host[bytes] = device[bytes], after all that is on the stream, which goes on behind the copy; `event` is
 * then where the copy is done. Until event_wait returned, host, which is of host_alloc, is neither read nor
 * written. The CPU is done on return. */
typedef wb_status wb_start_to_host_fn(wb_device *dev, void *host, const void *device, size_t bytes,
                                      void *event);

/* *come_out: whether the latest start_to_host with `event` is done; waits for nothing. Errors, but for those
 * of a fault of the device itself, are left to event_wait. */
typedef wb_status wb_event_look_fn(wb_device *dev, void *event, bool *come_out);

/* Waits for the latest start_to_host with `event`. Errors as of to_host; when it fails, the copy need not be
 * there. */
typedef wb_status wb_event_wait_fn(wb_device *dev, void *event);

/* to[bytes] = from[bytes], both device; they may overlap on the CPU only. */
typedef wb_status wb_copy_fn(wb_device *dev, void *to, const void *from, size_t bytes);

/* device[bytes] = 0 */
typedef wb_status wb_zero_fn(wb_device *dev, void *device, size_t bytes);

/* *digest_out (host): a number of data[bytes], device, that tells other bytes apart as well as 64 bits can,
 * the same on every backend. On CUDA it waits for the stream, as to_host. */
typedef wb_status wb_digest_fn(wb_device *dev, const void *data, size_t bytes, uint64_t *digest_out);

/* ---- memory of the ops --------------------------------------------------------------------------- */

/* The largest calls that a user of a device will make; 0 where it makes none of that kind. */
typedef struct wb_op_sizes {
    /* T of a call, and rows of grouped_matmul */
    int64_t tokens, expert_rows;
    /* elements of a token's row, each the widest: hidden, between projections and attention, and of gate or
     * up in a dense part and in an expert */
    int64_t hidden, dense_width, expert_width;
    /* of attention, as wb_attention's, the widest */
    int32_t n_heads, n_kv_heads, head_dim, value_dim;
    /* keys that a query sees */
    int64_t keys;
    /* of a gated delta rule; zeros where there is none */
    wb_delta_heads delta;
    /* of attention over entries, with the heads above: keys and entries together that a query sees, entries
     * that an indexer chooses from, and those of a call's tokens, of which a backward has rows */
    int64_t entry_keys, ranked_entries, call_entries;
    int32_t index_heads, index_dim;
    /* channels of a compressor's gates, the widest */
    int64_t compress_channels;
    /* S of hyper-connections */
    int32_t n_streams;
    /* E > 0 where experts are chosen; R, slots of all ranks, and groups of grouped_matmul */
    wb_router router;
    int32_t n_sources, n_slots, n_groups;
    /* V; the rows of a call of sample, and those of a gradient of V logits in a product */
    int64_t vocab_size, sampled, head_rows;
    /* count * n of sum_squares, whose count is 1 or at most 2 * n_groups */
    int64_t summed;
    /* of activations */
    wb_dtype dtype;
    bool backward;
} wb_op_sizes;

/* Makes what memory the ops need of their own for calls up to `most`, so that such calls allocate nothing;
 * what there was for other users stays. An op that was not told of, or of a larger call, makes it when it is
 * called. OUT_OF_MEMORY. */
typedef wb_status wb_reserve_scratch_fn(wb_device *dev, const wb_op_sizes *most);

/* Bytes that reserve_scratch has a CUDA device of 132 multiprocessors and compute capability 9.0 make, as an
 * H100 and an H200 are. Users of one device share them. 0 where Waybill was built without CUDA. */
WB_API size_t wb_scratch_bytes_cuda(const wb_op_sizes *most);

/* What an object takes of a device, by what it is for, and of the host. */
typedef struct wb_memory_part {
    const char *name; /* static */
    size_t bytes;
} wb_memory_part;

enum { WB_MAX_MEMORY_PARTS = 12 };

typedef struct wb_memory {
    wb_memory_part parts[WB_MAX_MEMORY_PARTS]; /* [n_parts] of the device */
    int32_t n_parts;
    size_t device_bytes; /* all parts */
    size_t host_bytes;
    wb_op_sizes ops;   /* which it makes: what they need of the device comes beside all parts */
    int32_t n_tensors; /* of a model */
} wb_memory;

#ifdef __cplusplus
}
#endif
#endif
