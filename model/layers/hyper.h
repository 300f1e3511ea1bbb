/* hyper.h - hyper-connections (wb_hyper in wb_ops_rows.h): between a residual stream of several rows a token
 * and a part of a layer, which reads one and gives one. Of a model without them nothing here is called.
 * Pointers are device memory. */
#ifndef WB_LAYERS_HYPER_H
#define WB_LAYERS_HYPER_H

#include "layers/layer.h"
#include "registry.h"

/* What a part's forward leaves for its backward. */
typedef struct wb_hyper_kept {
    wb_buffer mixed;    /* [T, H] what the part reads, before the norm */
    wb_buffer out;      /* [T, H] what it gives */
    wb_buffer products; /* f32 [T, M] */
    wb_buffer weights;  /* f32 [T, M] */
} wb_hyper_kept;

/* fn, base and scale under their names; all -1 where the model has no hyper-connections. `iterations`: 0 of
 * the end of a model. */
wb_hyper_weights wb_hyper_declare(wb_registry *registry, int32_t l, const char *fn, const char *base,
                                  const char *scale, int32_t iterations);

void wb_hyper_layout(wb_hyper_kept *kept, const wb_model *model, int64_t T, wb_arena *arena);

/* kept->mixed (=) from the stream x[T,S,H], and the weights with which the result comes back. */
wb_status wb_hyper_read(const wb_model *model, const wb_hyper_weights *w, const wb_hyper_kept *kept,
                        int64_t T, wb_rows x);
/* y[T,S,H] (=) the stream x and kept->out in it. */
wb_status wb_hyper_write(const wb_model *model, const wb_hyper_kept *kept, int64_t T, wb_rows x, wb_rows y);

/* Both backwards, that of the write first: dout[T,H] (=), dx[T,S,H] (=) and dweights[T,M] (=) from dy; then
 * dx (+=) and grads (+=) from dmixed[T,H] and dweights, which is used up. */
wb_status wb_hyper_write_backward(const wb_model *model, const wb_hyper_kept *kept, int64_t T, wb_rows x,
                                  wb_rows dy, wb_rows dout, wb_rows dx, float *dweights);
wb_status wb_hyper_read_backward(const wb_model *model, const wb_hyper_weights *w, const float *products,
                                 int32_t iterations, int64_t T, wb_rows x, wb_rows dmixed, float *dweights,
                                 float *const *grads, wb_rows dx);

/* The end of a model, which has weights to read alone: out[n,H] (=) from rows x[n,S,H]; products and weights,
 * f32 [n,S], are scratch. */
wb_status wb_hyper_end(const wb_model *model, int64_t n, wb_rows x, float *products, float *weights,
                       wb_rows out);

#endif
