/* logit_gradient.h - the gradient of logits, of the head's or of a router's, on its way into products.
 *
 * Logits and their gradient are f32 (wb_kernels.h, Numbers). Where activations are bf16 it is rounded once,
 * before the two products that take it: a product of f32 and bf16 is none for tensor cores, and every other
 * gradient of an activation is rounded as well. Refuses: making it (logprob_backward, gate_backward). */
#ifndef WB_LOGIT_GRADIENT_H
#define WB_LOGIT_GRADIENT_H

#include "layers/layer.h"

/* Place for what is rounded of [rows, width]; nothing where activations are f32. */
void wb_logit_gradient_place(wb_arena *arena, const wb_model *model, wb_buffer *rounded, int64_t rows,
                             int64_t width);

/* *operand_out: dlogits [n], device, as products take it: itself, or what is then in `rounded`. */
wb_status wb_logit_gradient(const wb_model *model, int64_t n, const float *dlogits, const wb_buffer *rounded,
                            wb_rows *operand_out);

#endif
