/* head.h - both ends of a model: tokens to the residual stream, and the residual stream to logits.
 * Pointers are device memory. */
#ifndef WB_HEAD_H
#define WB_HEAD_H

#include "layers/layer.h"

/* x[T,W] (=) the embedding of tokens[T], in each of the streams where there are several; then rows[T,H] is
 * scratch. */
wb_status wb_embed_forward(const wb_model *model, int64_t T, const int32_t *tokens, wb_rows rows, wb_rows x);
wb_status wb_embed_backward(const wb_model *model, int64_t T, const int32_t *tokens, wb_rows rows, wb_rows dx,
                            float *const *grads);

/* What lies between the streams and the rows of the head, where there are several: the rows of the stream as
 * they were taken, and scratch. */
typedef struct wb_head_rows {
    wb_buffer stream, dstream;   /* [n, W] */
    wb_buffer products, weights; /* f32 [n, S] */
} wb_head_rows;

void wb_head_rows_layout(wb_head_rows *rows, const wb_model *model, int64_t n, bool backward,
                         wb_arena *arena);

/* out[n,H] (=) of the rows index[n] of the last layer's output x[T,W]. */
wb_status wb_head_take(const wb_model *model, const wb_head_rows *rows, int64_t n, const int32_t *index,
                       wb_rows x, wb_rows out);
/* dx[T,W] (=), zeros but for those rows, from dout[n,H]; grads (+=). */
wb_status wb_head_take_backward(const wb_model *model, const wb_head_rows *rows, int64_t n,
                                const int32_t *index, int64_t T, wb_rows dout, float *const *grads,
                                wb_rows dx);
/* out[n,H] (=) of rows that lie side by side, x[n,W]: x itself where the stream is one. */
wb_status wb_head_mix(const wb_model *model, const wb_head_rows *rows, int64_t n, wb_rows x, wb_rows *out);

/* normed[n,H] (=) the final norm of x[n,H], and logits[n,V] (=) of it. */
wb_status wb_head_forward(const wb_model *model, int64_t n, wb_rows x, wb_rows normed, float *logits);

/* The backward in two steps, so that logits may be worked on in chunks of rows: dnormed[n,H] (=) from
 * dlogits[n,V], as wb_logit_gradient has it, then dx[n,H] (=) from dnormed, which it may be. grads[param]
 * (+=). */
wb_status wb_head_logits_backward(const wb_model *model, int64_t n, wb_rows normed, wb_rows dlogits,
                                  float *const *grads, wb_rows dnormed);
wb_status wb_head_norm_backward(const wb_model *model, int64_t n, wb_rows x, wb_rows dnormed,
                                float *const *grads, wb_rows dx);

#endif
