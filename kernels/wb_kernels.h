/* wb_kernels.h - the ops that a Mixture-of-Experts transformer needs, forward and backward: the type of each
 * op's function with its contract, and the devices that run them.
 *
 * Owns: what every backend, CPU and CUDA, implements. Refuses: files, models, scheduling, policy.
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

#include "wb_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- devices ------------------------------------------------------------------------------------- */

typedef struct wb_device wb_device;

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

/* ---- ops ------------------------------------------------------------------------------------------
 *
 * wb_<op>_fn is the type of the function of op <op>: what a backend implements and what the rooms above
 * call. The first argument is the device; `w` are weights, `d...` gradients; "+=" accumulates, "=" writes.
 * All return INVALID_ARGUMENT or DEVICE as above. */

/* ---- operands ------------------------------------------------------------------------------------ */

/* Activations or their gradients: an op reads them, writes them or both, as it says. */
typedef struct wb_rows {
    /* device; of the shape that the op names */
    void *data;
    /* f32 or bf16 */
    wb_dtype dtype;
} wb_rows;

static inline wb_rows wb_f32_rows(const float *data) {
    wb_rows rows = {(void *)data, WB_F32};
    return rows;
}

/* The rows that begin at element `first` of `rows`. */
static inline wb_rows wb_rows_from(wb_rows rows, int64_t first) {
    rows.data = (char *)rows.data + first * (int64_t)wb_dtype_size(rows.dtype);
    return rows;
}

/* Rows of w in a group of packed weights, which are columns of a product; on every machine, as packed weights
 * are sent to other ranks as bytes. */
enum { WB_PACKED_COLUMNS = 16 };

/* A matrix of weights, [rows, cols] = [out, in] of a Linear layer; a vector has one column. */
typedef struct wb_weight {
    /* device */
    void *data;
    /* f32 or bf16; of a vector f32 */
    wb_dtype dtype;
    int64_t rows, cols;
    /* it lies as wb_pack_weights_fn leaves it; forward products alone read it so */
    bool packed;
} wb_weight;

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

/* ---- matmul -------------------------------------------------------------------------------------- */

/* C[m,n] = (accumulate ? C[m,n] : 0) + sum over ascending k of A(m,k) * B(k,n), one fma chain for each
 * element. a, b and c may each be f32 or bf16, whatever the others are. A(m,k) = a[m * a_row + k * a_col],
 * B(k,n) = b[k * b_row + n * b_col]; of each pair of strides one is 1. C rows are ldc apart. M, N or K may be
 * 0 (K = 0 writes zeros, or nothing when accumulating). */
typedef struct wb_matmul {
    int64_t M, N, K;
    wb_rows a;
    int64_t a_row, a_col;
    /* activations or weights */
    wb_rows b;
    int64_t b_row, b_col;
    wb_rows c;
    int64_t ldc;
    bool accumulate;
    /* b is packed weights, of a forward: b_row is 1, b_col is K, a_col is 1, N % WB_PACKED_COLUMNS is 0 */
    bool b_packed;
} wb_matmul;

/* `count` matrices like `w`, one after the other from w.data on, in place: rows in groups of
 * WB_PACKED_COLUMNS, of which w.rows is a multiple, and in a group [cols][WB_PACKED_COLUMNS], so that a
 * product reads address after address and turns nothing. The bits of a product do not depend on it.
 * Optional: CUDA, whose products read rows as they lie, has no such op. */
typedef wb_status wb_pack_weights_fn(wb_device *dev, int64_t count, wb_weight w);

/* `count` independent products (a Linear layer is one, a layer of experts one for each expert). list: host
 * [count]. */
typedef wb_status wb_matmul_fn(wb_device *dev, int64_t count, const wb_matmul *list);

/* y[T,out] = x[T,in] w[out,in]^T : a Linear layer's forward. */
static inline wb_matmul wb_matmul_forward(int64_t T, wb_rows x, wb_weight w, wb_rows y) {
    wb_rows b = {w.data, w.dtype};
    wb_matmul m = {T, w.rows, w.cols, x, w.cols, 1, b, 1, w.cols, y, w.rows, false, w.packed};
    return m;
}

/* dx[T,in] (+)= dy[T,out] w[out,in] : the gradient of its input. */
static inline wb_matmul wb_matmul_dgrad(int64_t T, wb_rows dy, wb_weight w, wb_rows dx, bool accumulate) {
    wb_rows b = {w.data, w.dtype};
    wb_matmul m = {T, w.cols, w.rows, dy, w.rows, 1, b, w.cols, 1, dx, w.cols, accumulate, w.packed};
    return m;
}

/* dw[out,in] += dy[T,out]^T x[T,in] : the gradient of its weight. */
static inline wb_matmul wb_matmul_wgrad(int64_t T, int64_t in, int64_t out, wb_rows dy, wb_rows x,
                                        float *dw) {
    wb_matmul m = {out, in, T, dy, 1, out, x, in, 1, wb_f32_rows(dw), in, true, false};
    return m;
}

/* ---- rows and elements --------------------------------------------------------------------------- */

/* y[T,H] = table[tokens[t],:], H = table.cols. Backward: dtable[V,H] += scattered dy[T,H], ascending t.
 * tokens: device [T], below table.rows, or INVALID_ARGUMENT; in the backward those of the forward. */
typedef wb_status wb_embed_forward_fn(wb_device *dev, int64_t T, const int32_t *tokens, wb_weight table,
                                      wb_rows y);
typedef wb_status wb_embed_backward_fn(wb_device *dev, int64_t T, int64_t H, const int32_t *tokens,
                                       wb_rows dy, float *dtable);

/* What an RMSNorm multiplies a row by, behind the division by the row's root mean square. */
typedef struct wb_norm {
    /* device, as wide as the row; NULL, in rmsnorm_forward and its backward, which has no dw then: all 1 */
    const float *w;
    /* added to the mean of the squares */
    float eps;
    /* the factor is 1 + w and not w (qwen3_next) */
    bool zero_centered;
} wb_norm;

/* y[n,width] = x * rsqrt(mean(x^2) + eps) * w[width]; y may be x. Backward: dx (=), may be dy; dw (+=), may
 * be NULL. Also the per-head query/key norm, with n = T * heads and width = head_dim. */
typedef wb_status wb_rmsnorm_forward_fn(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_norm norm,
                                        wb_rows y);
typedef wb_status wb_rmsnorm_backward_fn(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_norm norm,
                                         wb_rows dy, wb_rows dx, float *dw);

/* y[n,width] += x[n,width], then normed = rmsnorm_forward of y as it was written: the residual stream, and
 * what the next part of a layer gets of it. */
typedef wb_status wb_add_rmsnorm_fn(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_rows y,
                                    wb_norm norm, wb_rows normed);

/* y[n,width] = norm(x) * silu(z), z[n,width]; y may be x or z. Backward: dx (=), may be dy; dz (=), may be z;
 * dw (+=), may be NULL. */
typedef wb_status wb_gated_rmsnorm_forward_fn(wb_device *dev, int64_t n, int64_t width, wb_rows x,
                                              wb_norm norm, wb_rows z, wb_rows y);
typedef wb_status wb_gated_rmsnorm_backward_fn(wb_device *dev, int64_t n, int64_t width, wb_rows x,
                                               wb_norm norm, wb_rows z, wb_rows dy, wb_rows dx, wb_rows dz,
                                               float *dw);

/* Rotary embedding of x[T, n_heads, head_dim] in place: of the rot_dim dimensions from `first` on the pairs
 * (i, i + rot_dim / 2), or where `interleaved` the pairs (2 i, 2 i + 1). */
typedef struct wb_rope {
    int64_t T;
    int32_t n_heads, head_dim, first, rot_dim;
    bool interleaved;
    /* rotates back: the backward */
    bool inverse;
    /* R > 1: of compressed entries, which are rotated as at the first position of theirs (wb_entries): row t
     * by the angles of pos[t] / R * R. 0 and 1: by those of pos[t]. */
    int32_t ratio;
    /* device [T] */
    const int32_t *pos;
    /* device [positions, rot_dim / 2] */
    const float *cos_table, *sin_table;
    wb_rows x;
} wb_rope;
typedef wb_status wb_rope_fn(wb_device *dev, const wb_rope *args);

/* out[i, :] = in[index[i], :], i < n. index: device [n]. */
typedef wb_status wb_gather_rows_fn(wb_device *dev, int64_t n, int64_t width, const int32_t *index,
                                    wb_rows in, wb_rows out);

/* to[i, j] = from[i, j], i < n, j < width: a block of columns, whose rows are from_stride and to_stride
 * elements apart, of one dtype; from[0, 0] and to[0, 0] are the first elements of the rows. What lies between
 * the rows stays as it is, and the blocks do not overlap. */
typedef wb_status wb_copy_columns_fn(wb_device *dev, int64_t n, int64_t width, wb_rows from,
                                     int64_t from_stride, wb_rows to, int64_t to_stride);

/* to[t, h, i] = from[t, h, i], t < T, h < n_heads, i < width, both of one dtype: blocks of columns that lie
 * in another order there. Element [t, h, i] is t * row + h * head + i behind the first one. What lies between
 * the blocks stays as it is, and no two of them overlap. */
typedef struct wb_copy_heads {
    int64_t T, n_heads, width;
    wb_rows from;
    int64_t from_row, from_head;
    wb_rows to;
    int64_t to_row, to_head;
} wb_copy_heads;
typedef wb_status wb_copy_heads_fn(wb_device *dev, const wb_copy_heads *args);

/* out[index[i], :] = in[i, :], i < n, the other rows of out staying as they are: the way back from a gather.
 * index: device [n], no row twice. */
typedef wb_status wb_scatter_rows_fn(wb_device *dev, int64_t n, int64_t width, const int32_t *index,
                                     wb_rows in, wb_rows out);

/* gate_up[n, 2F] = [gate | up]: out[n,F] = silu(gate) * up. Backward: dgate_up (=), may be gate_up. */
typedef wb_status wb_swiglu_forward_fn(wb_device *dev, int64_t n, int64_t F, wb_rows gate_up, wb_rows out);
typedef wb_status wb_swiglu_backward_fn(wb_device *dev, int64_t n, int64_t F, wb_rows gate_up, wb_rows dout,
                                        wb_rows dgate_up);

/* y[n] += x[n] */
typedef wb_status wb_add_fn(wb_device *dev, int64_t n, wb_rows x, wb_rows y);

/* y[n,width] += s * x[n,width], s = sigmoid(gate[row]) of each row: one fma for each element. gate: device
 * f32 [n]. Backward: dx[n,width] (=) s * dy, may be x; dgate[n] (=) s (1 - s) <dy, x>, summed in lane
 * order. */
typedef wb_status wb_add_gated_forward_fn(wb_device *dev, int64_t n, int64_t width, const float *gate,
                                          wb_rows x, wb_rows y);
typedef wb_status wb_add_gated_backward_fn(wb_device *dev, int64_t n, int64_t width, const float *gate,
                                           wb_rows x, wb_rows dy, wb_rows dx, float *dgate);

/* y[n,width] = x * sigmoid(gate), whose rows are gate_stride elements apart, as dgate's; y may be x.
 * Backward: dx (=), may be dy; dgate (=), may be gate, and what lies between its rows stays as it is. */
typedef wb_status wb_sigmoid_gate_forward_fn(wb_device *dev, int64_t n, int64_t width, wb_rows x,
                                             wb_rows gate, int64_t gate_stride, wb_rows y);
typedef wb_status wb_sigmoid_gate_backward_fn(wb_device *dev, int64_t n, int64_t width, wb_rows x,
                                              wb_rows gate, int64_t gate_stride, wb_rows dy, wb_rows dx,
                                              wb_rows dgate);

/* y[n,width] += b[width] on every row. Backward: db[width] += sum of dy over ascending rows. */
typedef wb_status wb_bias_forward_fn(wb_device *dev, int64_t n, int64_t width, const float *b, wb_rows y);
typedef wb_status wb_bias_backward_fn(wb_device *dev, int64_t n, int64_t width, wb_rows dy, float *db);

/* x[n] to [-limit, limit], in place. Backward, in place on dx[n]: 0 where |x| > limit, x before the clamp. */
typedef wb_status wb_clamp_fn(wb_device *dev, int64_t n, float limit, wb_rows x);
typedef wb_status wb_clamp_backward_fn(wb_device *dev, int64_t n, float limit, wb_rows x, wb_rows dx);

/* to[n] = from[n], from either dtype to either. */
typedef wb_status wb_cast_fn(wb_device *dev, int64_t n, wb_rows from, wb_rows to);

/* ---- hyper-connections --------------------------------------------------------------------------- */

/* A residual stream of S rows a token, x[T,S,H]. A part of a layer reads a sum of them, `in`, and what it
 * makes of it, `out`, is added to all of them, y[T,S,H], which are mixed besides. With p = products, which
 * are those of fn[M, S H] and a token's S rows as one, M = S (S + 2), and m = p / sqrt(mean of x^2 over S H +
 * norm_eps):
 *   pre_n = sigmoid(scale[0] m_n + base_n) + eps            in = sum over n of pre_n x_n
 *   post_k = 2 sigmoid(scale[1] m_(S + k) + base_(S + k))   y_k = post_k out + sum over j of C_jk x_j
 *   C_jk = the softmax over k of scale[2] m_(2S + jS + k) + base_(2S + jS + k), + eps; then its columns, and
 *          iterations - 1 times its rows and its columns, are divided by their sums + eps (Sinkhorn)
 * Sums over streams are fma chains in ascending order. */
enum { WB_MAX_STREAMS = 8, WB_MAX_SINKHORN = 32 };

typedef struct wb_hyper {
    int64_t T, H;
    /* S, 1..WB_MAX_STREAMS */
    int32_t n_streams;
    /* 1..WB_MAX_SINKHORN; 0: there is pre alone, M = S and scale has one element, as at the end of a model */
    int32_t iterations;
    float norm_eps, eps;
    wb_rows x;
    /* device [T, M]; a matmul of x and fn */
    const float *products;
    /* device [3], [M] */
    const float *scale, *base;
} wb_hyper;

static inline int64_t wb_hyper_width(int32_t n_streams, int32_t iterations) {
    return (int64_t)n_streams * (iterations > 0 ? n_streams + 2 : 1);
}

/* in[T,H] (=); weights[T,M] (=), f32: pre, post and C.
 * Backward, with the products of the forward: from din and dweights[T,M], of which those of post and C are
 * read, dx (+=) what comes by pre and by the mean of the squares, dproducts[T,M] (=), may be dweights,
 * dscale and dbase (+=) over ascending tokens. What comes by the products is left to a matmul: dx +=
 * dproducts fn, and dfn += dproducts^T x. */
typedef wb_status wb_hyper_pre_forward_fn(wb_device *dev, const wb_hyper *args, wb_rows in, float *weights);
typedef wb_status wb_hyper_pre_backward_fn(wb_device *dev, const wb_hyper *args, wb_rows din,
                                           const float *dweights, wb_rows dx, float *dproducts, float *dscale,
                                           float *dbase);

/* y[T,S,H] (=), may be x. weights: those of hyper_pre_forward. Backward: dout[T,H] (=), dx[T,S,H] (=), may be
 * dy, and dweights[T,M] (=), zeros for pre, each a sum over H in lane order. */
typedef wb_status wb_hyper_post_forward_fn(wb_device *dev, int64_t T, int32_t S, int64_t H,
                                           const float *weights, wb_rows x, wb_rows out, wb_rows y);
typedef wb_status wb_hyper_post_backward_fn(wb_device *dev, int64_t T, int32_t S, int64_t H,
                                            const float *weights, wb_rows x, wb_rows out, wb_rows dy,
                                            wb_rows dout, wb_rows dx, float *dweights);

/* ---- attention ----------------------------------------------------------------------------------- */

/* Causal grouped-query attention over a paged pool of keys and values. Query token t belongs to sequence
 * seq[t] at absolute position pos[t] and sees the keys of that sequence at the positions up to pos[t], or the
 * last `window` of them; the row of position j in the pool is
 * blocks[seq * max_blocks + j / block_size] * block_size + j % block_size. Training uses the same op with
 * block_size 1. Head h reads kv head h / (n_heads / n_kv_heads).
 *
 * Nothing is read of the keys, the values and the entries of `blocks` before the first position that some
 * query of a sequence sees, so that their pages may be gone. A window changes no bit of a query that sees all
 * its keys through it: its keys are masked, and sums keep their places. */
typedef struct wb_attention {
    int64_t T;
    /* value_dim: the width of a value's head and of out's; the others are of head_dim, queries and keys */
    int32_t n_heads, n_kv_heads, head_dim, value_dim;
    float scale;
    /* W > 0: the token at position t sees the keys at positions t - W + 1 .. t; 0: all up to t */
    int32_t window;
    /* device [n_heads], or NULL: a logit beside those of the keys, as of a key that every query sees and
     * whose value is 0. It takes part in the softmax's largest logit and in its sum, where it is added last.
     */
    const float *sinks;
    /* [T, n_heads * head_dim] */
    wb_rows q;
    /* [pool rows, n_kv_heads * head_dim] and [pool rows, n_kv_heads * value_dim], both of one dtype: q's, or
     * bf16. A forward takes v with the address of k too, as in MLA's absorbed form: the values of a head are
     * then the first value_dim elements of its keys. */
    wb_rows k, v;
    /* device [T]: tokens of one sequence are adjacent; -1: padding, which sees no key and whose rows of out
     * and dq are zeros */
    const int32_t *seq;
    /* device [T], ascending within a run */
    const int32_t *pos;
    /* device [n_seqs, max_blocks] */
    const int32_t *blocks;
    int32_t max_blocks, block_size;
    /* No two tokens are of one sequence. For speed alone: false is always right. seq, pos, blocks, and keys
     * and values before a sequence's tokens may be read before the op that was started last has ended: it
     * must not be the one that writes them. */
    bool one_a_sequence;
    /* What a forward leaves for its backward, device [T, n_heads]: the natural logarithm of the sum of
     * exp(scale * score) over the keys of each query and head, and of exp(sink); 0 for padding. Only what
     * CUDA makes of bf16 by tensor cores writes it; it is read for heads of 64 and 128 on sm_90a alone. NULL:
     * the backward finds it again, which is slower. */
    float *log_sums;
    /* like the forward's out, what it wrote; a backward with log_sums reads it */
    wb_rows out;
} wb_attention;

/* out[T, n_heads * value_dim] (=). Backward (k and v of q's dtype, and apart; dout like out): dq (=) like q,
 * dk and dv (+=) like k and v, dsinks[n_heads] (+=, f32) over the tokens in ascending order; NULL where there
 * are no sinks. CUDA takes a head_dim and a value_dim of at most 640. bf16 runs on tensor cores where all
 * rows begin at multiples of 16 bytes and they are 64 and 64 or 128 and 128 (wgmma on sm_90a), or 192 and 128
 * of MLA's expanded form, which no model here calls (mma.sync, up to 16 heads a kv head), or in a forward 576
 * and 512 of MLA's absorbed form, with values in the keys (mma.sync, where a block may have 154 KB of shared
 * memory). Other shapes, and the backward of 576 and 512, have kernels without tensor cores, which are
 * slower. */
typedef wb_status wb_attention_forward_fn(wb_device *dev, const wb_attention *args, wb_rows out);
typedef wb_status wb_attention_backward_fn(wb_device *dev, const wb_attention *args, wb_rows dout, wb_rows dq,
                                           wb_rows dk, wb_rows dv, float *dsinks);

/* cache[rows[t], :] = x[t, :width]; the cache is of x's dtype, or bf16. rows: device [T]; -1: of padding,
 * nothing is written. */
typedef wb_status wb_kv_write_fn(wb_device *dev, int64_t T, int64_t width, wb_rows x, const int64_t *rows,
                                 wb_rows cache);

/* From the projections of T tokens to what attention reads, in place: q and k are normed, clamped and
 * rotated, v is clamped, and the keys and values go into the pool. */
typedef struct wb_attention_inputs {
    int64_t T;
    int32_t n_heads, n_kv_heads, head_dim, rot_dim;
    /* [T, n_heads * head_dim], and twice [T, n_kv_heads * head_dim] */
    wb_rows q, k, v;
    /* of each head, or where norm_whole of a token's row as a whole; both w NULL: no norm */
    wb_norm q_norm, k_norm;
    bool norm_whole;
    /* the limit of the clamp; 0: none */
    float clip;
    /* as of wb_rope_fn */
    const int32_t *pos;
    const float *cos_table, *sin_table;
    /* device [T] row of each token in the pool, -1: of padding, nothing is written; or NULL: there is none */
    const int64_t *rows;
    /* [pool rows, n_kv_heads * head_dim], of k's dtype, or bf16 */
    wb_rows k_cache, v_cache;
} wb_attention_inputs;

/* The bits of rmsnorm_forward, clamp, rope and kv_write one after the other, each of which rounds what it
 * writes. */
typedef wb_status wb_attention_prepare_fn(wb_device *dev, const wb_attention_inputs *args);

/* ---- recurrent layers ------------------------------------------------------------------------------ */

/* The tokens [start, start + n) of a call: all that it has of one sequence, in ascending positions. */
typedef struct wb_sequence_run {
    int32_t start, n;
    /* number of the sequence's state of fixed size; -1: it has none, as in training */
    int32_t state;
} wb_sequence_run;

/* What an op that goes from token to token goes over. What it makes of a token depends on the sequence's
 * tokens up to it alone, bit for bit: not on how they were cut into runs, and not on other runs. */
typedef struct wb_sequences {
    /* tokens of the call */
    int64_t T, n_runs;
    /* device [n_runs], apart and ascending; behind the others some may be empty, which start at or behind the
     * last one's end. A token of no run is padding, whose rows of what an op writes are zeros. */
    const wb_sequence_run *runs;
    /* device f32, of the shape that the op names: the state with number i lies at states + i * state_stride
     * bytes. A run finds there what is behind the token before it, zeros where there is none, and leaves what
     * is behind its last token; no two runs of a call have one state. NULL: each run is a whole sequence,
     * begins with zeros and leaves nothing. */
    char *states;
    int64_t state_stride;
} wb_sequences;

enum { WB_MAX_CONV_WIDTH = 8 };

/* A causal convolution of each channel by itself, over the last `width` tokens of a sequence. */
typedef struct wb_short_conv {
    /* a state is [width - 1, channels]: x of the last tokens, the oldest first */
    wb_sequences of;
    /* width: W, 1..WB_MAX_CONV_WIDTH */
    int32_t channels, width;
    /* device [channels, width], the token's own weight last */
    const float *w;
    /* [T, channels] */
    wb_rows x;
} wb_short_conv;

/* y[t,c] (=) silu(sum over ascending m of w[c,m] x[t - W + 1 + m, c]), x being 0 before the sequence; y is
 * not x. Backward, without states: dx (=), which is not dy, sums over ascending tokens; dw (+=). */
typedef wb_status wb_short_conv_forward_fn(wb_device *dev, const wb_short_conv *args, wb_rows y);
typedef wb_status wb_short_conv_backward_fn(wb_device *dev, const wb_short_conv *args, wb_rows dy, wb_rows dx,
                                            float *dw);

/* Value head h reads key head h / (n_value / n_key). */
typedef struct wb_delta_heads {
    int32_t n_key, n_value, key_dim, value_dim;
} wb_delta_heads;

/* Elements of a token's queries, keys and values. */
static inline int64_t wb_delta_width(wb_delta_heads heads) {
    return 2 * (int64_t)heads.n_key * heads.key_dim + (int64_t)heads.n_value * heads.value_dim;
}

/* Tokens from one checkpoint of a gated delta rule to the next. */
enum { WB_DELTA_CHUNK = 64 };

/* f32 that a call of T tokens has of checkpoints. */
static inline int64_t wb_delta_checkpoint_floats(int64_t T, wb_delta_heads heads) {
    return (T + WB_DELTA_CHUNK - 1) / WB_DELTA_CHUNK * heads.n_value * heads.key_dim * heads.value_dim;
}

/* The gated delta rule (Gated DeltaNet). In each value head, with q and k divided by their lengths,
 * rsqrt(sum x^2 + 1e-6), q also by sqrt(key_dim), beta = sigmoid(b), g = -exp(A_log) softplus(a + dt_bias):
 *   S' = exp(g) S;   d = beta (v - S'^T k);   S = S' + k d^T;   o = S^T q
 * from token to token, S[key_dim, value_dim] being 0 before the sequence. All of it is f32; sums over a
 * head's elements, and over its values in the backward, are in lane order. */
typedef struct wb_gated_delta {
    /* a state is [n_value, value_dim, key_dim]: S^T of each head */
    wb_sequences of;
    wb_delta_heads heads;
    /* [T, wb_delta_width]: a token's queries, its keys, its values, each head by head */
    wb_rows qkv;
    /* [T, n_value] */
    wb_rows b, a;
    /* device [n_value] */
    const float *A_log, *dt_bias;
    /* device [wb_delta_checkpoint_floats], or NULL where no backward follows. A forward without states leaves
     * there for its backward S before every WB_DELTA_CHUNK-th token of the call. */
    float *checkpoints;
} wb_gated_delta;

/* o[T, n_value * value_dim] (=). Backward, without states: dqkv (=) like qkv, db and da (=) like b and a;
 * dA_log and ddt_bias [n_value] (+=) over the tokens in ascending order. dq and dk are summed over the value
 * heads of a key head, ascending. CUDA takes a key_dim of at most 256, in the backward of at most 169 where a
 * block has no more than 99 KiB of shared memory. */
typedef wb_status wb_gated_delta_forward_fn(wb_device *dev, const wb_gated_delta *args, wb_rows o);
typedef wb_status wb_gated_delta_backward_fn(wb_device *dev, const wb_gated_delta *args, wb_rows dout,
                                             wb_rows dqkv, wb_rows db, wb_rows da, float *dA_log,
                                             float *ddt_bias);

/* ---- attention over compressed entries ----------------------------------------------------------- */

/* Of every R positions of a sequence one entry, for each channel a sum of `values` weighted by the softmax of
 * gates + bias: over the positions wR .. wR + R - 1 of entry w; or, where it overlaps, over those of entry w
 * - 1 too, which come first and for which values, gates and bias have D channels of their own in front of the
 * D of entry w. Each channel is one chain over ascending positions (compress_rules.h), which ends at the
 * entry's last position: an entry has the same bits however its positions are cut into calls. */
typedef struct wb_compress {
    /* a state is [1 or, where it overlaps, 2 entries that have not ended][3, D] (compress_rules.h) */
    wb_sequences of;
    /* D */
    int64_t width;
    /* R, 1 or more */
    int32_t ratio;
    bool overlaps;
    /* [T, C], C = D, or 2 D where it overlaps */
    wb_rows values, gates;
    /* device [R, C], by position in an entry's R */
    const float *bias;
    /* device [T] */
    const int32_t *pos;
} wb_compress;

static inline int64_t wb_compress_state_bytes(int64_t width, bool overlaps) {
    return (overlaps ? 2 : 1) * 3 * width * (int64_t)sizeof(float);
}

/* entries[T,D] (=): row t is the entry that ends at token t, zeros where none does.
 * Backward, without states: dvalues and dgates [T,C] (=), zeros at positions of which no entry is made;
 * dbias[R,C] (+=) the sum of dgates over ascending tokens. dentries: rows in which no entry ends are not
 * read. */
typedef wb_status wb_compress_forward_fn(wb_device *dev, const wb_compress *args, wb_rows entries);
typedef wb_status wb_compress_backward_fn(wb_device *dev, const wb_compress *args, wb_rows dentries,
                                          wb_rows dvalues, wb_rows dgates, float *dbias);

/* Where entries lie, beside the rows of positions (wb_attention): entry w ends at position p = wR + R - 1,
 * and is row blocks[seq * max_blocks + p / block_size] * n + p % block_size / R, where a block has the
 * entries that can end in it, n = (block_size + R - 1) / R. A query at position p sees the entries w < (p +
 * 1) / R. */
typedef struct wb_entries {
    /* R; 0: there are none */
    int32_t ratio;
    wb_rows rows;
    /* elements from a row to the next one, of which an entry has the first */
    int64_t stride;
} wb_entries;

/* The entries that attention of a token is to see, where these are chosen: the top_k of the largest
 *   sum over ascending heads h of weights_h max(<q_h, key of the entry>, 0)
 * in which a score is one fma chain over a head's dimensions. Order: score descending, then entry ascending,
 * NaN last. No gradient passes through a choice. CUDA takes n_heads * (head_dim + 1) of at most 12,000. */
typedef struct wb_indexer {
    int64_t T;
    int32_t n_heads, head_dim, top_k;
    /* [T, n_heads * head_dim] */
    wb_rows q;
    /* device [T, n_heads] */
    const float *weights;
    /* of head_dim elements, of q's dtype, or bf16 */
    wb_entries keys;
    /* as of wb_attention; padding has no entries */
    const int32_t *seq, *pos, *blocks;
    int32_t max_blocks, block_size;
    /* that any token of the call sees, at most */
    int64_t max_entries;
    /* device [T] wb_row_direction: a row that is not native keeps its list; NULL: all rows are native */
    const uint8_t *direction;
    /* device [T, top_k], in for rows that keep theirs, out for the others: ascending, then -1 */
    int32_t *listed;
    /* out, optional: what every row, native or not, would choose */
    int32_t *native;
} wb_indexer;
typedef wb_status wb_indexer_topk_fn(wb_device *dev, const wb_indexer *args);

/* Attention whose heads share one row, key and value at once: over the last `window` rows of a sequence, as
 * `raw` says, and then over entries, ascending, in one softmax. Both are keys of one list, over whose places
 * sums go: scores are chains over dimensions, exponentials are summed in lane order, an element of out is one
 * chain over the list. */
typedef struct wb_entry_attention {
    /* n_kv_heads 1, value_dim = head_dim, v = k, log_sums NULL; out is not read */
    wb_attention raw;
    /* of head_dim elements, of k's dtype */
    wb_entries entries;
    /* device [T, max_listed]: which entries a token sees, ascending, then -1; an entry that it cannot see is
     * INVALID_ARGUMENT. NULL: all of them. */
    const int32_t *listed;
    int32_t max_listed;
} wb_entry_attention;

/* out[T, n_heads * head_dim] (=). Backward, in which each sequence is whole: its tokens are adjacent, at the
 * positions 0, 1, 2 and so on, as rows and entries are counted by tokens of the call; nothing checks it. dq
 * (=), dk like k and dentries like the entries' rows (+=): a row's gradient as key and as value, over
 * ascending queries, of each of which what comes by its scores goes before what comes by its weights, over
 * ascending heads. dsinks as in attention_backward. */
typedef wb_status wb_entry_attention_forward_fn(wb_device *dev, const wb_entry_attention *args, wb_rows out);
typedef wb_status wb_entry_attention_backward_fn(wb_device *dev, const wb_entry_attention *args, wb_rows dout,
                                                 wb_rows dq, wb_rows dk, wb_rows dentries, float *dsinks);

/* ---- routing ------------------------------------------------------------------------------------- */

/* The router types of the field. z are a token's logits, C its chosen ids, c the scale; w the weights of the
 * choices, as wb_gate_forward_fn makes them. */
typedef enum wb_router_type {
    /* p = softmax(z) over all E; w = c p_C, not renormalised (olmoe, qwen2_moe) */
    WB_ROUTER_SOFTMAX,
    /* w = c p_C / sum p_C (qwen3_moe, mixtral) */
    WB_ROUTER_SOFTMAX_NORM,
    /* w = c softmax(z_C) (gpt_oss): the same function as SOFTMAX_NORM */
    WB_ROUTER_TOPK_SOFTMAX,
    /* s = sigmoid(z), selection by s + bias; w = c s_C / (sum s_C + 1e-20) (deepseek_v3, glm4) */
    WB_ROUTER_SIGMOID,
    /* s = sqrt(softplus(z)); the rest as SIGMOID (deepseek_v4) */
    WB_ROUTER_SQRTSOFTPLUS,
    /* ids from a table by token id; w as SQRTSOFTPLUS (deepseek_v4's first layers) */
    WB_ROUTER_HASH
} wb_router_type;

/* A description, not an options struct: callers fill every field, and fields are never added, since structs
 * of callers (wb_hooks_options) have it by value. A later setting of routers is a field of whoever has one.
 */
typedef struct wb_router {
    wb_router_type type;
    /* E, 1..65536 */
    int32_t n_experts;
    /* K, 1..min(E, 64) */
    int32_t top_k;
    /* Selection limited to the topk_group best of n_group groups of adjacent experts; n_group <= 1: no
     * limit. SIGMOID and SQRTSOFTPLUS score a group by the sum of its two largest keys, the softmax types by
     * its largest; experts of other groups are never chosen. */
    int32_t n_group, topk_group;
    /* SIGMOID, SQRTSOFTPLUS, HASH: divide by the sum; ignored by the others */
    bool normalize;
    /* c */
    float scale;
} wb_router;

/* "softmax", "softmax_norm", ...; static. "unknown" for a number that is no type. */
WB_API const char *wb_router_name(wb_router_type type);

/* INVALID_ARGUMENT, naming the field, for a router that no op takes. */
WB_API wb_status wb_router_check(const wb_router *router);

/* Expert ids in place in a route tensor: the id of choice k of token t is data[t * stride + k], u8 or u16. A
 * layer l of a tensor [T][L][K] is {base + l * K, dtype, L * K}. */
typedef struct wb_ids {
    /* device; NULL where the view is optional */
    void *data;
    wb_dtype dtype;
    /* in ids */
    int64_t stride;
} wb_ids;

/* Selection. Order of the choices: key descending, then id ascending, NaN last. */
typedef struct wb_topk {
    wb_router router;
    int64_t T;
    /* device [T, E] */
    const float *logits;
    /* device [E], added to the key only (SIGMOID, SQRTSOFTPLUS); or NULL */
    const float *bias;
    /* device [vocabulary, K] and [T]; HASH only */
    const int32_t *table;
    const int32_t *tokens;
    /* device [T] wb_row_direction: a row that is not native keeps its ids; NULL: all rows are native */
    const uint8_t *direction;
    /* in for rows that keep theirs, out for native ones */
    wb_ids ids;
    /* out, optional: what every row, native or not, would select */
    wb_ids native;
} wb_topk;

/* INVALID_ARGUMENT also for HASH without table or tokens, and for a table's id that is no expert's. */
typedef wb_status wb_topk_fn(wb_device *dev, const wb_topk *args);

/* weights[T,K] of the ids as they stand, from the current logits[T,E]; ids forced or selected alike.
 * direction: device [T] wb_row_direction, or NULL: a padding row's weights are zero, whatever its logits, so
 * that nothing that its experts make of it is ever added to anything. An id of E or more is
 * INVALID_ARGUMENT, and on CUDA that choice has a NaN weight and no gradient.
 * Backward: dlogits[T,E] (=) from dweights[T,K], zeros in padding rows. With g = dweights and q, s, p as in
 * wb_router_type:
 *   SOFTMAX        dz_e = [e in C] c g_e p_e - p_e sum_j c g_j p_j         for every e: dense
 *   SOFTMAX_NORM, TOPK_SOFTMAX   dz_j = c q_j (g_j - sum_l g_l q_l)        the chosen only, others 0
 *   SIGMOID        ds_j = (c/Q)(g_j - sum_l g_l s_l / Q), dz_j = ds_j s_j (1 - s_j);  Q = sum s + 1e-20
 *   SQRTSOFTPLUS, HASH           the same ds_j, dz_j = ds_j sigmoid(z_j) / (2 s_j), 0 where s_j = 0
 *   not normalised: ds_j = c g_j.   A repeated id accumulates. */
typedef wb_status wb_gate_forward_fn(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                                     const uint8_t *direction, wb_ids ids, float *weights);
typedef wb_status wb_gate_backward_fn(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                                      const uint8_t *direction, wb_ids ids, const float *dweights,
                                      float *dlogits);

/* ids [T, K] of one view into another. INVALID_ARGUMENT for u16 into u8. */
typedef wb_status wb_copy_ids_fn(wb_device *dev, int64_t T, int32_t K, wb_ids from, wb_ids to);

/* What became of planned rows of a MoE layer. */
typedef struct wb_route_check {
    int64_t T;
    int32_t top_k, n_experts;
    wb_ids planned;
    /* where a dispatcher sends the rows, in any order within a row; or data NULL: not looked at */
    wb_ids taken;
    /* device [T, K], or NULL: not looked at */
    const float *weights;
    /* what messages say of row 0 */
    int32_t micro_batch, layer;
    int64_t row;
} wb_route_check;

/* Writes nothing: it finds a row that is taken elsewhere than planned (MISMATCH), an id of `taken` of E or
 * more, and a weight that is no finite number (INVALID_ARGUMENT), and names the row. On CUDA that is a fault:
 * what waits for the device next returns it, a launch of a graph included. */
typedef wb_status wb_check_routes_fn(wb_device *dev, const wb_route_check *args);

/* ---- the MoE layer ------------------------------------------------------------------------------- */

/* Where the tokens of one source rank go in one layer: what wb_dispatch_slot (wb_dispatch_rules.h) reads.
 * wb_dispatch_fill_table (wb_dispatch.h) makes the arrays; they belong to whoever had them made, as device
 * memory for an op and as host memory for what runs on the host. Slots are those of all ranks, 0..S-1. */
typedef struct wb_dispatch_rule {
    /* policy static: [E] the slot of each expert for this rank; NULL under dynamic */
    const int32_t *slot_of_expert;
    /* policy dynamic: expert e has the slots replica_slots[replica_begin[e] .. replica_begin[e + 1] - 1], in
     * replica order; replica_begin is [E + 1]; both NULL under static */
    const int32_t *replica_begin, *replica_slots;
    /* dynamic: the MoE layer, which enters the hash; static: not read */
    uint32_t layer;
} wb_dispatch_rule;

/* Which slot each pair, a (token, choice), goes to, and in which row. Rows lie by slot, then token, then
 * choice, without gaps; padding tokens have no pairs. Everything is device memory: nothing waits for the
 * host. */
typedef struct wb_moe_plan {
    int64_t T;
    /* K and E */
    int32_t top_k, n_experts;
    /* S, those of all ranks */
    int32_t n_slots;
    /* where this rank's tokens go in this layer */
    wb_dispatch_rule rule;
    /* [T] what a DYNAMIC rule goes by; NULL under STATIC */
    const int32_t *tokens, *pos;
    /* [T] wb_row_direction, or NULL: no padding */
    const uint8_t *direction;
    wb_ids ids;
    /* out [T * K]: the row of each pair, -1 for those of padding and of experts without weights */
    int32_t *pair_row;
    /* out [T * K]: the token of each row; from the last row on undefined */
    int32_t *row_token;
    /* out [S + 1]: slot s has the rows [offsets[s], offsets[s + 1]) */
    int32_t *offsets;
    /* How many of the E have no weights, the last ones: a choice of theirs has no row (wb_own_choices). The
     * rule has the others alone. */
    int32_t n_weightless;
} wb_moe_plan;

/* INVALID_ARGUMENT when T * K does not fit an i32, and for an id of E or more. */
typedef wb_status wb_moe_plan_fn(wb_device *dev, const wb_moe_plan *plan);

/* Rows of all ranks arrive by source rank, then slot; experts want them by slot, then source, each source's
 * in its order. All device memory. */
typedef struct wb_moe_group {
    /* R, and the slots of this rank */
    int32_t n_sources, n_slots;
    /* [n_sources][n_slots] rows that arrive */
    const int32_t *counts;
    /* out [n_slots + 1]: slot s has the grouped rows [offsets[s], offsets[s + 1]) */
    int32_t *offsets;
    /* out [offsets[n_slots]]: where a grouped row was received, and the grouped row of a received one */
    int32_t *to_received, *to_grouped;
} wb_moe_group;
typedef wb_status wb_moe_group_fn(wb_device *dev, const wb_moe_group *group);

/* A matrix for each of n_groups groups of adjacent rows: the experts of a rank, one after the other. */
typedef struct wb_grouped {
    int32_t n_groups;
    /* device [n_groups + 1]: group g has the rows [offsets[g], offsets[g + 1]), some or none */
    const int32_t *offsets;
    /* how many rows there may be, for whoever cannot look at offsets */
    int64_t max_rows;
    /* [out, in] of group g, g * out * in elements from w.data on */
    wb_weight w;
    /* device [rows], or NULL. Row i of the input is x[gather[i]], not x[i]. `gathered`, [max_rows, in], is
     * where a backend that does not gather on its way puts the rows, and finds them in the backward. */
    const int32_t *gather;
    wb_rows gathered;
    /* forward with act: y is of no use afterwards, so that it may be left with anything in it */
    bool y_is_scratch;
    /* backward: dw is overwritten, that of a group without rows by zeros, instead of added to */
    bool overwrites;
} wb_grouped;

/* y[rows, out] (=) each row of x with its group's matrix, x w^T. act: NULL data, or [rows, out / 2] (=)
 * silu(gate) * up of y = [gate | up] as it was written, as wb_swiglu_forward_fn. */
typedef wb_status wb_grouped_matmul_fn(wb_device *dev, const wb_grouped *grouped, wb_rows x, wb_rows y,
                                       wb_rows act);

/* dw[n_groups][out][in] (+=, or = where `grouped` overwrites) the rows of each group in ascending order,
 * dx[rows, in] (=), from dy[rows, out] and the x of the forward. gate_up: NULL data; or x is the act of
 * [rows, 2 in] = gate_up, which becomes its own gradient: then dx is scratch. */
typedef wb_status wb_grouped_matmul_backward_fn(wb_device *dev, const wb_grouped *grouped, wb_rows x,
                                                wb_rows dy, float *dw, wb_rows dx, wb_rows gate_up);

/* What experts with biases and a clamped SwiGLU have between their products. Of `grouped`, which is that
 * of the product, only the groups, max_rows and overwrites are read.
 *
 * y[rows, width] += b[group of the row], b: device f32 [n_groups, width]. Backward: db (+=, or = where
 * `grouped` overwrites) the sum of dy over the ascending rows of each group. */
typedef wb_status wb_grouped_bias_forward_fn(wb_device *dev, const wb_grouped *grouped, int64_t width,
                                             const float *b, wb_rows y);
typedef wb_status wb_grouped_bias_backward_fn(wb_device *dev, const wb_grouped *grouped, int64_t width,
                                              wb_rows dy, float *db);

/* g = min(gate, limit), u = up within [-limit, limit]; out = (u + offset) g sigmoid(alpha g): gpt_oss has the
 * alpha 1.702 and the offset 1, deepseek_v4 1 and 0, which is silu(g) u. */
typedef struct wb_clamped_swiglu {
    /* above 0 */
    float limit, alpha;
    float offset;
} wb_clamped_swiglu;

/* gate_up[rows, 2F] = [gate | up]: out[rows, F] (=). Backward: dgate_up (=), may be gate_up; 0 where
 * clamped. `grouped` without offsets (NULL): there are max_rows rows, as in a part that is no expert. */
typedef wb_status wb_grouped_swiglu_forward_fn(wb_device *dev, const wb_grouped *grouped, int64_t F,
                                               const wb_clamped_swiglu *clamp, wb_rows gate_up, wb_rows out);
typedef wb_status wb_grouped_swiglu_backward_fn(wb_device *dev, const wb_grouped *grouped, int64_t F,
                                                const wb_clamped_swiglu *clamp, wb_rows gate_up, wb_rows dout,
                                                wb_rows dgate_up);

/* y[T,H] (=) the sum over ascending choices k of weights[t,k] * rows[pair_row[t,k]]; weights NULL: all 1. A
 * pair whose row is -1 is not there.
 * Backward: drows[pair_row[t,k]] = weights[t,k] * dy[t]; dweights[t,k] = <dy[t], rows[pair_row[t,k]]>, 0 for
 * a pair that is not there, NULL where not wanted; drows may be rows. */
typedef wb_status wb_moe_combine_fn(wb_device *dev, int64_t T, int32_t K, int64_t H, wb_rows rows,
                                    const int32_t *pair_row, const float *weights, wb_rows y);
typedef wb_status wb_moe_combine_backward_fn(wb_device *dev, int64_t T, int32_t K, int64_t H, wb_rows rows,
                                             const int32_t *pair_row, const float *weights, wb_rows dy,
                                             wb_rows drows, float *dweights);

/* Choices of experts without weights, which make of a token the token itself: those of id `first` or more. */
typedef struct wb_own_choices {
    int64_t T, H;
    int32_t K;
    uint32_t first;
    wb_ids ids;
    /* device [T, K]; a choice of weight 0, as all of a padding row are, is not there */
    const float *weights;
} wb_own_choices;

/* y[T,H] (+=) weights[t,k] * x[t] over ascending choices k: one chain from y's element on.
 * Backward: dx[T,H] (+=) weights[t,k] * dy[t] likewise; dweights[t,k] (=) <dy[t], x[t]> of such choices, and
 * nothing is written of others. */
typedef wb_status wb_moe_own_forward_fn(wb_device *dev, const wb_own_choices *own, wb_rows x, wb_rows y);
typedef wb_status wb_moe_own_backward_fn(wb_device *dev, const wb_own_choices *own, wb_rows x, wb_rows dy,
                                         wb_rows dx, float *dweights);

/* ---- sampling and optimizer ---------------------------------------------------------------------- */

/* What the tokens of T rows were, or would have been, drawn from: the softmax of logits / temperature over
 * the kept tokens of each row. */
typedef struct wb_distribution {
    /* device [T], finite and above 0; NULL: 1 */
    const float *temperature;
    /* device: row t keeps kept_ids[kept_start[t] .. kept_start[t + 1]), ascending and below V, or the whole
     * vocabulary where there are none; kept_start: device [T + 1]; both NULL: no row is limited */
    const uint32_t *kept_ids;
    const int64_t *kept_start;
} wb_distribution;

/* logprobs[t] = log of the probability of targets[t] in row t of `of`; 0 where targets[t] < 0. `of` NULL:
 * temperature 1 over the whole vocabulary. targets: device [T]; a target is one of its row's kept tokens.
 * The kept tokens are summed in the order of their ids, in parts of 2048 of which each has exponentials of
 * its own largest (sample_rules.h), so that a row that keeps every token, one by one, and a row that is not
 * limited have the same bits, and so have temperature 1 and none.
 * Backward: dlogits[t,:] = dlogprobs[t] / temperature * (onehot - softmax), zeros outside of the kept tokens
 * and where targets[t] < 0; may be logits. */
typedef wb_status wb_logprob_forward_fn(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                        const int32_t *targets, const wb_distribution *of, float *logprobs);
typedef wb_status wb_logprob_backward_fn(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                         const int32_t *targets, const wb_distribution *of,
                                         const float *dlogprobs, float *dlogits);

/* The smallest temperature that is not greedy: below it logits / temperature leave the range of f32. */
#define WB_MIN_TEMPERATURE 1e-6f

/* How one row is sampled. */
typedef struct wb_sample_params {
    /* 0: greedy, lowest id on a tie; else at least WB_MIN_TEMPERATURE */
    float temperature;
    /* 0: no limit */
    int32_t top_k;
    /* 1: no limit; keeps the smallest set, by probability descending, that reaches top_p */
    float top_p;
    /* this row's random number in [0, 1) */
    float uniform;
} wb_sample_params;

/* How many tokens a row that is sampled so can keep; 0: no limit is named. A top_k that the vocabulary does
 * not reach is a limit too, which keeps all V tokens by name: who has the params and not V cannot tell it
 * from one that was not told. */
static inline int64_t wb_sample_max_kept(const wb_sample_params *params, int64_t V) {
    if (params->temperature == 0) return 1;
    if (params->top_k > 0 && params->top_k < V) return params->top_k;
    return params->top_k > 0 || params->top_p < 1 ? V : 0;
}

/* Where the tokens that top-k and top-p keep are to be told. */
typedef struct wb_sample_kept {
    /* host [B + 1]: row b has room for the ids from start[b] to start[b + 1]: wb_sample_max_kept at least, or
     * none where they are not wanted */
    const int64_t *start;
    /* device, out: from start[b] on, ascending */
    uint32_t *ids;
    /* device [B], out: how many; 0 where there is no room */
    int32_t *counts;
} wb_sample_kept;

/* One token a row from logits[B,V]. params: host [B]. kept: or NULL. tokens, logprobs: device [B]; logprobs
 * are of the distribution sampled from, the same bits as wb_logprob_forward_fn gives for the temperature and
 * the kept tokens. Greedy is a point mass: its token alone is kept, with log-probability 0. INVALID_ARGUMENT
 * names the first row whose logits hold a NaN or +inf, or are all -inf; on CUDA the token of such a row is
 * -1. */
typedef wb_status wb_sample_fn(wb_device *dev, int64_t B, int64_t V, const float *logits,
                               const wb_sample_params *params, const wb_sample_kept *kept, int32_t *tokens,
                               float *logprobs);

/* sums[count] (device) = the sum of the squares of each of x[count, n], in f64, in an order that depends on n
 * alone. */
typedef wb_status wb_sum_squares_fn(wb_device *dev, int64_t count, int64_t n, wb_rows x, double *sums);

typedef struct wb_adamw {
    /* weight_decay is decoupled: w -= lr * weight_decay * w */
    float lr, beta1, beta2, eps, weight_decay;
    /* multiplies the gradient first (clipping) */
    float grad_scale;
    /* 1 at the first update: bias correction */
    uint64_t step;
} wb_adamw;

/* w, m, v [n] updated in place from g [n]. rounded: bf16 [n] (=) the new w, or NULL where there is none: w is
 * then the master of a weight that passes see in bf16. Rounding after every update and not the master itself
 * keeps what an update adds below the resolution of bf16. */
typedef wb_status wb_adamw_fn(wb_device *dev, int64_t n, const wb_adamw *hyper, const float *g, float *m,
                              float *v, float *w, uint16_t *rounded);

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
