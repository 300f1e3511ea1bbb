/* hopper_call.h - what the products of matrices of bf16 are asked for on sm_90a: see hopper_product.h for how
 * they are made. For .cu files of any architecture. */
#ifndef WB_HOPPER_CALL_H
#define WB_HOPPER_CALL_H

#include "cuda/cuda_device.h"

/* FORWARD  C[r, n] = sum of k A[r, k] B[g][n, k]            y = x w^T
 * DGRAD    C[r, n] = sum of k A[r, k] B[g][k, n]            dx = dy w
 * WGRAD    C[g][m, n] = sum of r A[r, m] B[r, n]            dw = x^T dy, over the rows r of a group */
enum wb_product_form { WB_PRODUCT_FORWARD, WB_PRODUCT_DGRAD, WB_PRODUCT_WGRAD };

/* ROWS     C is rows of bf16 that are overwritten
 * ELEMENTS C is of either dtype, its rows adjacent elements, overwritten or added to
 * SUMS     WGRAD: C is matrices of f32, overwritten or added to; what is gathered runs along their rows, so
 *          that with a gather c_row is 1, and else c_column
 * SWIGLU   FORWARD: C is [gate | up], rows of bf16, not kept where it is NULL, and `act` is written
 * DSWIGLU  DGRAD: C is [gate | up] of [rows, 2 N], which becomes its gradient; the product is that of act */
enum wb_product_result {
    WB_PRODUCT_ROWS,
    WB_PRODUCT_ELEMENTS,
    WB_PRODUCT_SUMS,
    WB_PRODUCT_SWIGLU,
    WB_PRODUCT_DSWIGLU
};

/* One product, or one for each group of adjacent rows. Pointers are device memory. */
struct wb_product {
    wb_product_form form;
    wb_product_result result;
    /* group g has the rows [offsets[g], offsets[g + 1]); NULL: one group of `rows`, which is otherwise how
     * many there may be */
    const int32_t *offsets;
    int32_t n_groups, rows;
    /* columns of A in WGRAD; columns of C; the k of FORWARD and DGRAD, ascending in steps of 16 */
    int32_t M, N, K;
    /* bf16, rows lda apart; row i is a[gather[i]] where there is a gather. Only FORWARD and WGRAD gather. */
    const uint16_t *a;
    int64_t lda;
    const int32_t *gather;
    /* bf16, rows ldb apart, a matrix after the other in FORWARD and DGRAD */
    const uint16_t *b;
    int64_t ldb;
    /* element (m, n) of group g lies at g * c_group + m * c_row + n * c_column */
    wb_rows c;
    int64_t c_row, c_column, c_group;
    bool accumulate;
    uint16_t *act;
    /* set by the launch: tiles drawn, and clusters that have ended; 0 before and after */
    int32_t *counters;
};

#ifdef WB_HAVE_HOPPER
/* Whether `device` has such kernels and the matrices lie as their copies need it: 16-byte rows. It does not
 * depend on the number of rows. */
bool wb_hopper_takes(const wb_device *dev, const wb_product *p);

/* For a product that is taken; it has rows and columns, and FORWARD and DGRAD have k. */
wb_status wb_hopper_multiply(wb_device *dev, const char *op, const wb_product *p);
#else
/* Built for other GPUs alone. */
inline bool wb_hopper_takes(const wb_device *, const wb_product *) {
    return false;
}
inline wb_status wb_hopper_multiply(wb_device *, const char *, const wb_product *) {
    return WB_UNSUPPORTED;
}
#endif

#endif
