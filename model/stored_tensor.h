/* stored_tensor.h - a tensor as checkpoints store it, to elements of a model: plain elements, and elements of
 * 8 bits that a second tensor scales block by block. A further way to store weights is a line of the table in
 * stored_tensor.c. */
#ifndef WB_STORED_TENSOR_H
#define WB_STORED_TENSOR_H

#include "wb_tensor_io.h"

typedef struct wb_stored_tensor {
    wb_tensor_view view;   /* elements: f32, bf16, f16, or another with scales */
    wb_tensor_view scales; /* data NULL: there are none */
    size_t scales_index;   /* tensor of the files; where there are scales */
} wb_stored_tensor;

/* Tensor `index` of the files with what belongs to it. NOT_FOUND, MISMATCH and UNSUPPORTED name tensor, file,
 * what was expected and what was found. */
wb_status wb_stored_find(const wb_safetensors *files, size_t index, wb_stored_tensor *stored_out);

/* to[n], host, f32 or bf16, (=) the elements [first, first + n) of all, times their scales: a product is
 * rounded to f32, then to `dtype`, each to nearest even. */
void wb_stored_read(const wb_stored_tensor *stored, int64_t first, int64_t n, void *to, wb_dtype dtype);

#endif
