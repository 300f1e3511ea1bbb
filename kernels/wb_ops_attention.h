/* wb_ops_attention.h - attention over a paged pool of keys and values, and how these come into the pool.
 *
 * What all ops have in common is said in wb_kernels.h. */
#ifndef WB_OPS_ATTENTION_H
#define WB_OPS_ATTENTION_H

#include "wb_ops_rows.h"

#ifdef __cplusplus
extern "C" {
#endif

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

#ifdef __cplusplus
}
#endif
#endif
