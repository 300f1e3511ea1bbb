/* wb_operands.h - what ops are called with: a device, rows of activations, matrices of weights.
 *
 * What all ops have in common is said in wb_kernels.h. */
#ifndef WB_OPERANDS_H
#define WB_OPERANDS_H

#include "wb_base.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wb_device wb_device;

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

#ifdef __cplusplus
}
#endif
#endif
