/* wb_ops_recurrent.h - the ops that go over a sequence from token to token and keep a state of it: the short
 * convolution and the gated delta rule.
 *
 * What all ops have in common is said in wb_kernels.h. */
#ifndef WB_OPS_RECURRENT_H
#define WB_OPS_RECURRENT_H

#include "wb_operands.h"

#ifdef __cplusplus
extern "C" {
#endif

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

#ifdef __cplusplus
}
#endif
#endif
