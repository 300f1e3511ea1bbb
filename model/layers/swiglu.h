/* swiglu.h - down(silu(gate x) * up x) of every row: the dense feed-forward part, and the shared experts
 * of a MoE layer. Buffers are kept by a forward for its backward; scratch may be that of another
 * (wb_sizes.scratch_of), which is then `other`. Pointers are device memory. */
#ifndef WB_SWIGLU_H
#define WB_SWIGLU_H

#include "layers/layer.h"
#include "registry.h"

typedef struct wb_swiglu_weights {
    int32_t gate_up, down; /* [2I, H] rows gate before up, [H, I] */
} wb_swiglu_weights;

typedef struct wb_swiglu {
    wb_model *model;
    int64_t width;          /* I */
    wb_buffer gate_up, act; /* [T, 2I], [T, I] */
    wb_buffer dact;         /* [T, I]; scratch */
} wb_swiglu;

/* The clamp of all SwiGLUs of a model whose configuration has a limit; without one it is plain. */
static inline wb_clamped_swiglu wb_swiglu_clamp(const wb_model *model) {
    const bool adds_one = model->family->expert_biases;
    return (wb_clamped_swiglu){.limit = model->config.swiglu_limit,
                               .alpha = adds_one ? 1.702f : 1.0f,
                               .offset = adds_one ? 1.0f : 0.0f};
}

/* The tensors <prefix>.gate_proj.weight and so on of layer l. */
void wb_swiglu_declare(wb_registry *registry, int32_t l, const char *prefix, int64_t width,
                       wb_swiglu_weights *weights_out);

void wb_swiglu_layout(wb_swiglu *s, const wb_swiglu *other, wb_model *model, int64_t width,
                      const wb_sizes *sizes, wb_arena *arena);

/* Multiply-adds of a forward of `tokens` tokens. */
double wb_swiglu_work(const wb_config *config, int64_t width, int64_t tokens);

/* y[T,H] (=) from x[T,H]. */
wb_status wb_swiglu_forward(wb_swiglu *s, const wb_swiglu_weights *w, int64_t T, wb_rows x, wb_rows y);

/* dx[T,H] (=, or += with `accumulate`) from dy[T,H] and the x of the forward; grads[param] (+=). */
wb_status wb_swiglu_backward(wb_swiglu *s, const wb_swiglu_weights *w, int64_t T, wb_rows x, wb_rows dy,
                             float *const *grads, bool accumulate, wb_rows dx);

#endif
