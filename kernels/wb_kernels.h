/* wb_kernels.h - the ops that a Mixture-of-Experts transformer needs, forward and backward, behind one table.
 *
 * Owns: the op table (wb_device) and its CPU backend; the router's selection and the forced gate, which also
 * exist for CUDA. Refuses: files, models, scheduling, policy.
 *
 * Memory: pointers marked "device" belong to the backend (on the CPU they are ordinary memory); callers never
 * dereference them, they call ops, to_device and to_host. Pointers marked "host" are ordinary memory.
 * Layout: row-major, rows contiguous unless a stride is given. Compute is f32; matrices of weights are f32
 * or bf16 (widened exactly when read).
 *
 * Batch invariance: the result for one row (token) is the same bits whatever other rows are in the call,
 * however a prompt is cut into calls, and for any thread count. Reductions run in a fixed order that depends
 * on the reduced length alone: matmul is one fused-multiply-add chain over ascending k for each element;
 * norms, softmax and attention sum in a fixed lane order over ascending index. Gradients of shared weights
 * sum over tokens in ascending order.
 *
 * Errors: ops check what is cheap (dtype, K <= E) and return WB_INVALID_ARGUMENT; shapes are the caller's
 * promise. T = 0 is valid everywhere. Ops of one device are called from one thread at a time; they run in
 * order on `stream` (CUDA) or are done on return (CPU). None is collective.
 */
#ifndef WB_KERNELS_H
#define WB_KERNELS_H

#include "wb_base.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wb_device wb_device;

/* ---- matmul -------------------------------------------------------------------------------------- */

/* C[m,n] = (accumulate ? C[m,n] : 0) + sum over ascending k of A(m,k) * B(k,n), one fma chain for each
 * element. A(m,k) = a[m * a_row + k * a_col], B(k,n) = b[k * b_row + n * b_col]; of each pair of strides
 * one is 1. C rows are ldc apart. M, N or K may be 0 (K = 0 writes zeros, or nothing when accumulating). */
typedef struct wb_matmul {
    int64_t M, N, K;
    const float *a; /* device */
    int64_t a_row, a_col;
    const void *b; /* device, f32 or bf16 */
    wb_dtype b_dtype;
    int64_t b_row, b_col;
    float *c; /* device */
    int64_t ldc;
    bool accumulate;
} wb_matmul;

/* y[T,out] = x[T,in] w[out,in]^T : a Linear layer's forward. */
static inline wb_matmul wb_matmul_forward(int64_t T, int64_t in, int64_t out, const float *x, const void *w,
                                          wb_dtype w_dtype, float *y) {
    wb_matmul m = {T, out, in, x, in, 1, w, w_dtype, 1, in, y, out, false};
    return m;
}

/* dx[T,in] (+)= dy[T,out] w[out,in] : the gradient of its input. */
static inline wb_matmul wb_matmul_dgrad(int64_t T, int64_t in, int64_t out, const float *dy, const void *w,
                                        wb_dtype w_dtype, float *dx, bool accumulate) {
    wb_matmul m = {T, in, out, dy, out, 1, w, w_dtype, in, 1, dx, in, accumulate};
    return m;
}

/* dw[out,in] += dy[T,out]^T x[T,in] : the gradient of its weight. */
static inline wb_matmul wb_matmul_wgrad(int64_t T, int64_t in, int64_t out, const float *dy, const float *x,
                                        float *dw) {
    wb_matmul m = {out, in, T, dy, 1, out, x, WB_F32, in, 1, dw, in, true};
    return m;
}

/* ---- attention ----------------------------------------------------------------------------------- */

/* Causal grouped-query attention over a paged pool of keys and values. Query token t belongs to sequence
 * seq[t] at absolute position pos[t] and sees the keys at positions 0 .. pos[t] of that sequence; the row of
 * position j in the pool is blocks[seq * max_blocks + j / block_size] * block_size + j % block_size. Training
 * uses the same op with block_size 1. Head h reads kv head h / (n_heads / n_kv_heads). */
typedef struct wb_attention {
    int64_t T;
    int32_t n_heads, n_kv_heads, head_dim;
    float scale;
    const float *q;        /* device [T, n_heads * head_dim] */
    const void *k, *v;     /* device [pool rows, n_kv_heads * head_dim] of kv_dtype */
    wb_dtype kv_dtype;     /* f32 or bf16 */
    const int32_t *seq;    /* device [T], ascending runs: tokens of one sequence are adjacent */
    const int32_t *pos;    /* device [T], ascending within a run */
    const int32_t *blocks; /* device [n_seqs, max_blocks] */
    int32_t max_blocks, block_size;
} wb_attention;

/* ---- routing ------------------------------------------------------------------------------------- */

/* The router types of the field; z are the logits, S the chosen ids, c the scale. Formulas of the combine
 * weights w and of dz are those of wb_device.gate_forward / gate_backward below. */
typedef enum wb_router_type {
    WB_ROUTER_SOFTMAX,      /* p = softmax(z) over all E; w = c p_S, not renormalised (olmoe, qwen2_moe) */
    WB_ROUTER_SOFTMAX_NORM, /* w = c p_S / sum p_S (qwen3_moe, mixtral) */
    WB_ROUTER_TOPK_SOFTMAX, /* w = c softmax(z_S) (gpt_oss): the same function as SOFTMAX_NORM */
    WB_ROUTER_SIGMOID, /* s = sigmoid(z), selection by s + bias; w = c s_S / (sum s_S + 1e-20) (deepseek_v3, glm4) */
    WB_ROUTER_SQRTSOFTPLUS, /* s = sqrt(softplus(z)); the rest as SIGMOID (deepseek_v4) */
    WB_ROUTER_HASH          /* ids from a table by token id; w as SQRTSOFTPLUS (deepseek_v4's first layers) */
} wb_router_type;

typedef struct wb_router {
    wb_router_type type;
    int32_t n_experts; /* E, 1..65536 */
    int32_t top_k;     /* K, 1..min(E, 64) */
    int32_t n_group,
        topk_group; /* group-limited selection; n_group <= 1: none. SIGMOID scores a group by the sum of
                                  * its two largest keys, SOFTMAX by its largest; experts outside are never chosen */
    bool normalize; /* SIGMOID, SQRTSOFTPLUS, HASH: divide by the sum; ignored by the others */
    float scale;    /* c */
} wb_router;

WB_API const char *wb_router_name(wb_router_type type);    /* "softmax", "softmax_norm", ... */
WB_API wb_status wb_router_check(const wb_router *router); /* names the field that is off */

/* Expert ids in place in a route tensor: the id of (token t, slot k) is data[t * stride + k], u8 or u16.
 * A layer l of a tensor [T][L][K] is {base + l * K, dtype, L * K}. */
typedef struct wb_ids {
    void *data; /* device; NULL where the view is optional */
    wb_dtype dtype;
    int64_t stride; /* in ids */
} wb_ids;

/* Selection. Order of slots: key descending, then id ascending, NaN last (router_rules.h). */
typedef struct wb_topk {
    wb_router router;
    int64_t T;
    const float *logits;   /* device [T, E] */
    const float *bias;     /* device [E], added to the key only (SIGMOID, SQRTSOFTPLUS); or NULL */
    const int32_t *table;  /* device [vocabulary, K], HASH only */
    const int32_t *tokens; /* device [T], HASH only */
    const uint8_t *forced; /* device [T]: non-zero keeps the ids of that row; NULL: select all rows */
    wb_ids ids;            /* in for forced rows, out for the others */
    wb_ids native;         /* out, optional: what every row, forced or not, would select */
} wb_topk;

/* ---- sampling and optimizer ---------------------------------------------------------------------- */

typedef struct wb_sample_params {
    float temperature; /* 0: greedy, lowest id on a tie */
    int32_t top_k;     /* 0: no limit */
    float top_p;   /* 1: no limit; keeps the smallest set, by probability descending, that reaches top_p */
    float uniform; /* this row's random number in [0, 1) */
} wb_sample_params;

typedef struct wb_adamw {
    float lr, beta1, beta2, eps, weight_decay; /* decoupled decay: w -= lr * weight_decay * w */
    float grad_scale;                          /* multiplies the gradient first (clipping) */
    uint64_t step;                             /* 1 at the first update: bias correction */
} wb_adamw;

/* ---- devices ------------------------------------------------------------------------------------- */

typedef enum wb_backend { WB_BACKEND_CPU, WB_BACKEND_CUDA } wb_backend;

/* The CPU backend, the best instruction set that this processor has. `threads` 0: all that OpenMP would
 * use. */
WB_API wb_status wb_device_open_cpu(int threads, wb_device **device_out);

/* The CUDA backend on device `index`: memory, topk, gate_forward and gate_backward; the other ops are NULL.
 * UNSUPPORTED, with the reason, where Waybill was built without CUDA or no such device is there. */
WB_API wb_status wb_device_open_cuda(int index, wb_device **device_out);

WB_API void wb_device_close(wb_device *device); /* NULL is a no-op */

WB_API wb_backend wb_device_backend(const wb_device *device);
WB_API const char *wb_device_name(const wb_device *device); /* "cpu x86-64-v3", "cuda"; static */

/* Memory of the device: on the CPU ordinary memory, on CUDA device memory, copied in order on the device's
 * stream. wb_device_alloc gives 64-byte aligned, uninitialised memory; 0 bytes give a valid pointer. */
WB_API wb_status wb_device_alloc(wb_device *device, size_t bytes, void **device_out);
WB_API void wb_device_free(wb_device *device, void *memory); /* NULL is a no-op */
WB_API wb_status wb_device_upload(wb_device *device, void *memory, const void *host, size_t bytes);
WB_API wb_status wb_device_download(wb_device *device, void *host, const void *memory,
                                    size_t bytes); /* done on return */

#ifdef __cplusplus
}
#endif
#endif
