/* head.h - both ends of a model: tokens to the residual stream, and the residual stream to logits.
 * Pointers are device memory. */
#ifndef WB_HEAD_H
#define WB_HEAD_H

#include "model_weights.h"

/* x[T,H] (=) the embedding of tokens[T]. */
wb_status wb_embed_forward(const wb_model *model, int64_t T, const int32_t *tokens, float *x);
wb_status wb_embed_backward(const wb_model *model, int64_t T, const int32_t *tokens, const float *dx,
                            float *const *grads);

/* normed[n,H] (=) the final norm of x[n,H], and logits[n,V] (=) of it. */
wb_status wb_head_forward(const wb_model *model, int64_t n, const float *x, float *normed, float *logits);

/* The backward in two steps, so that logits may be worked on in chunks of rows: dnormed[n,H] (=) from
 * dlogits[n,V], then dx[n,H] (=) from dnormed, which it may be. grads[param] (+=). */
wb_status wb_head_logits_backward(const wb_model *model, int64_t n, const float *normed, const float *dlogits,
                                  float *const *grads, float *dnormed);
wb_status wb_head_norm_backward(const wb_model *model, int64_t n, const float *x, const float *dnormed,
                                float *const *grads, float *dx);

#endif
