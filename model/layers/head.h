/* head.h - both ends of a model: tokens to the residual stream, and the residual stream to logits.
 * Pointers are device memory. */
#ifndef WB_HEAD_H
#define WB_HEAD_H

#include "model_weights.h"

/* x[T,H] (=) the embedding of tokens[T]. */
wb_status wb_embed_forward(const wb_model *model, int64_t T, const int32_t *tokens, wb_rows x);
wb_status wb_embed_backward(const wb_model *model, int64_t T, const int32_t *tokens, wb_rows dx,
                            float *const *grads);

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
