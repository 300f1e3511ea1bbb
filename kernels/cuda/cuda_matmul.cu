/* cuda_matmul.cu - products of matrices: a list of them, and the experts', a matrix for each group of rows.
 *
 * Products of bf16 go to the kernels of sm_90a where these take them, and else to tensor cores tile by tile,
 * with the same bits; all others are made in f32. Refuses: kernels (cuda_tiles.cu, hopper/), which rows a
 * group has (cuda_moe.cu). */
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"
#include "cuda/cuda_swiglu.h"
#include "cuda/cuda_tiles.h"
#include "cuda/cuda_vector.h"
#include "cuda/hopper/hopper_call.h"

namespace {

/* ---- products of bf16 for sm_90a --------------------------------------------------------------- */

/* Whether this product is taken, and what it is then. */
bool takes(const wb_device *dev, wb_rows a, wb_rows b, int64_t rows, int64_t columns, const wb_product &p) {
    if (a.dtype != WB_BF16 || b.dtype != WB_BF16) return false;
    return rows < INT32_MAX && columns < INT32_MAX && wb_hopper_takes(dev, &p);
}

int32_t narrow(int64_t n) {
    return static_cast<int32_t>(n);
}

/* A product with a stride of 1 in A's k and B's k is a forward, in A's k and B's columns a dgrad, in A's rows
 * and B's columns a wgrad. */
bool product_of(const wb_device *dev, const wb_matmul &m, wb_product *p) {
    const bool wgrad = m.a_col != 1, forward = m.b_row == 1;
    if (wgrad && forward) return false;
    *p = wb_product();
    p->form = forward ? WB_PRODUCT_FORWARD : wgrad ? WB_PRODUCT_WGRAD : WB_PRODUCT_DGRAD;
    p->n_groups = 1, p->rows = narrow(wgrad ? m.K : m.M);
    p->M = narrow(m.M), p->N = narrow(m.N), p->K = narrow(m.K);
    p->a = bf16_of(m.a), p->lda = wgrad ? m.a_col : m.a_row;
    p->b = bf16_of(m.b), p->ldb = forward ? m.b_col : m.b_row;
    p->c = m.c, p->c_row = m.ldc, p->c_column = 1, p->accumulate = m.accumulate;
    const bool rows = m.c.dtype == WB_BF16 && !m.accumulate && !wgrad;
    const bool sums = m.c.dtype == WB_F32 && m.ldc % 4 == 0 && wgrad;
    p->result = rows ? WB_PRODUCT_ROWS : sums ? WB_PRODUCT_SUMS : WB_PRODUCT_ELEMENTS;
    return m.K > 0 && m.K < INT32_MAX && takes(dev, m.a, m.b, m.M, m.N, *p);
}

/* What the three products of a group have in common: the rows of `a`, `columns` wide. */
wb_product grouped(const wb_grouped &g, wb_product_form form, wb_rows a, int64_t columns) {
    wb_product p = wb_product();
    p.form = form;
    p.offsets = g.offsets, p.n_groups = g.n_groups, p.rows = narrow(g.max_rows);
    p.a = bf16_of(a), p.lda = columns;
    return p;
}

bool forward_of(const wb_device *dev, const wb_grouped &g, wb_rows x, wb_rows y, wb_rows act, wb_product *p) {
    const int64_t out = g.w.rows, in = g.w.cols;
    const wb_rows w = {g.w.data, g.w.dtype};
    *p = grouped(g, WB_PRODUCT_FORWARD, x, in);
    p->result = act.data ? WB_PRODUCT_SWIGLU : WB_PRODUCT_ROWS;
    p->N = narrow(out), p->K = narrow(in), p->gather = g.gather;
    p->b = bf16_of(w), p->ldb = in;
    p->c = y, p->c_row = out, p->c_column = 1, p->act = static_cast<uint16_t *>(act.data);
    if (act.data && g.y_is_scratch) p->c.data = NULL;
    /* Rows are gathered on the way to an activation only: no family has experts without one. */
    return (act.data || !g.gather) && takes(dev, x, w, g.max_rows, out, *p);
}

bool dgrad_of(const wb_device *dev, const wb_grouped &g, wb_rows dy, wb_rows dx, wb_rows gate_up,
              wb_product *p) {
    const int64_t out = g.w.rows, in = g.w.cols;
    const wb_rows w = {g.w.data, g.w.dtype};
    const bool act = gate_up.data != NULL;
    *p = grouped(g, WB_PRODUCT_DGRAD, dy, out);
    p->result = act ? WB_PRODUCT_DSWIGLU : WB_PRODUCT_ROWS;
    p->N = narrow(in), p->K = narrow(out);
    p->b = bf16_of(w), p->ldb = in;
    p->c = act ? gate_up : dx, p->c_row = act ? 2 * in : in, p->c_column = 1;
    return takes(dev, dy, w, g.max_rows, in, *p);
}

/* A is what may be gathered: x where it is, so that what is made is dw's transpose, and stored so. Where it
 * is not, A is dy, and a thread has two neighbours of a row of dw. */
bool wgrad_of(const wb_device *dev, const wb_grouped &g, wb_rows x, wb_rows dy, float *dw, wb_product *p) {
    const int64_t out = g.w.rows, in = g.w.cols;
    const bool transposed = g.gather != NULL;
    const wb_rows a = transposed ? x : dy, b = transposed ? dy : x;
    *p = grouped(g, WB_PRODUCT_WGRAD, a, transposed ? in : out);
    p->result = WB_PRODUCT_SUMS;
    p->M = narrow(transposed ? in : out), p->N = narrow(transposed ? out : in), p->gather = g.gather;
    p->b = bf16_of(b), p->ldb = p->N;
    p->c = wb_f32_rows(dw), p->c_group = out * in, p->accumulate = !g.overwrites;
    p->c_row = transposed ? 1 : in, p->c_column = transposed ? in : 1;
    return takes(dev, x, dy, g.max_rows, out, *p);
}

/* ---- an op's products -------------------------------------------------------------------------- */

wb_status check_product(const wb_matmul &p) {
    WB_TRY(operand_check("matmul", "a", p.a.dtype));
    WB_TRY(operand_check("matmul", "b", p.b.dtype));
    WB_TRY(operand_check("matmul", "c", p.c.dtype));
    WB_TRY(operand_check_rows("matmul", p.b_packed));
    if ((p.a_row != 1 && p.a_col != 1) || (p.b_row != 1 && p.b_col != 1))
        return wb_fail(WB_INVALID_ARGUMENT, "matmul: strides: expected a 1 in each pair, found none");
    return WB_OK;
}

bool has_work(const wb_grouped &g) {
    return g.max_rows > 0 && g.n_groups > 0 && g.w.rows > 0 && g.w.cols > 0;
}

/* What an overwriting backward without rows leaves. */
wb_status clear_dw(wb_device *dev, const wb_grouped &g, float *dw) {
    const int64_t n = g.n_groups * g.w.rows * g.w.cols;
    return g.overwrites ? dev->zero(dev, dw, (size_t)n * sizeof *dw) : WB_OK;
}

wb_status multiply_forward(wb_device *dev, const char *op, const wb_grouped &g, wb_rows x, wb_rows y,
                           wb_rows act) {
    const int32_t *n_rows = g.offsets + g.n_groups;
    wb_product p;
    if (forward_of(dev, g, x, y, act, &p)) return wb_hopper_multiply(dev, op, &p);
    if (g.gather) WB_TRY(wb_cuda_gather_some(dev, g.max_rows, n_rows, g.w.cols, g.gather, x, g.gathered));
    WB_TRY(wb_cuda_tiled_forward(dev, op, &g, g.gather ? g.gathered : x, y));
    if (!act.data) return WB_OK;
    LAUNCH(dev, op, g.max_rows * (g.w.rows / 2), 1, swiglu_elements, g.max_rows, n_rows, g.w.rows / 2, y,
           act);
}

/* The rows that a forward gathered on its way lie nowhere, and are gathered again where the gradient of the
 * weights does not do it itself. */
wb_status multiply_wgrad(wb_device *dev, const char *op, const wb_grouped &g, wb_rows x, wb_rows dy,
                         float *dw) {
    const int32_t *n_rows = g.offsets + g.n_groups;
    wb_product p;
    if (wgrad_of(dev, g, x, dy, dw, &p)) return wb_hopper_multiply(dev, op, &p);
    if (g.gather) WB_TRY(wb_cuda_gather_some(dev, g.max_rows, n_rows, g.w.cols, g.gather, x, g.gathered));
    return wb_cuda_tiled_wgrad(dev, op, &g, g.gather ? g.gathered : x, dy, dw);
}

wb_status multiply_dgrad(wb_device *dev, const char *op, const wb_grouped &g, wb_rows dy, wb_rows dx,
                         wb_rows gate_up) {
    const int32_t *n_rows = g.offsets + g.n_groups;
    const int64_t in = g.w.cols;
    wb_product p;
    if (dgrad_of(dev, g, dy, dx, gate_up, &p)) return wb_hopper_multiply(dev, op, &p);
    WB_TRY(wb_cuda_tiled_dgrad(dev, op, &g, dy, dx));
    if (!gate_up.data) return WB_OK;
    LAUNCH(dev, op, g.max_rows * in, 1, swiglu_gradients, g.max_rows, n_rows, in, gate_up, dx, gate_up);
}

} // namespace

extern "C" {

wb_status wb_cuda_matmul(wb_device *dev, int64_t count, const wb_matmul *list) {
    for (int64_t i = 0; i < count; i++) WB_TRY(check_product(list[i]));
    WB_TRY(wb_cuda_use(dev, "matmul"));
    for (int64_t i = 0; i < count; i++) {
        wb_product p;
        if (list[i].M == 0 || list[i].N == 0) continue;
        if (product_of(dev, list[i], &p))
            WB_TRY(wb_hopper_multiply(dev, "matmul", &p));
        else
            WB_TRY(wb_cuda_tiled_product(dev, &list[i]));
    }
    return WB_OK;
}

wb_status wb_cuda_grouped_matmul(wb_device *dev, const wb_grouped *g, wb_rows x, wb_rows y, wb_rows act) {
    WB_TRY(operand_check("grouped_matmul", "x", x.dtype));
    WB_TRY(operand_check_like("grouped_matmul", "y", y.dtype, "x", x.dtype));
    WB_TRY(operand_check("grouped_matmul", "w", g->w.dtype));
    WB_TRY(operand_check_rows("grouped_matmul", g->w.packed));
    if (!has_work(*g)) return WB_OK;
    WB_TRY(wb_cuda_use(dev, "grouped_matmul"));
    return multiply_forward(dev, "grouped_matmul", *g, x, y, act);
}

wb_status wb_cuda_grouped_matmul_backward(wb_device *dev, const wb_grouped *g, wb_rows x, wb_rows dy,
                                          float *dw, wb_rows dx, wb_rows gate_up) {
    const char *op = "grouped_matmul_backward";
    WB_TRY(operand_check(op, "x", x.dtype));
    WB_TRY(operand_check_like(op, "dy", dy.dtype, "x", x.dtype));
    WB_TRY(operand_check_like(op, "dx", dx.dtype, "x", x.dtype));
    WB_TRY(operand_check(op, "w", g->w.dtype));
    WB_TRY(operand_check_rows(op, g->w.packed));
    if (!has_work(*g)) return clear_dw(dev, *g, dw);
    WB_TRY(wb_cuda_use(dev, op));
    WB_TRY(multiply_wgrad(dev, op, *g, x, dy, dw));
    return multiply_dgrad(dev, op, *g, dy, dx, gate_up);
}
}
