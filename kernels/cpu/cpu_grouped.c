/* cpu_grouped.c - the experts' products: a matrix for each group of adjacent rows, forward and backward.
 *
 * All groups are one list of products, so that threads share what is uneven. The rows of a group are summed
 * into dw in ascending order. Refuses: which rows a group has (cpu_moe.c).
 */
#include "cpu/cpu_operands.h"
#include "cpu/cpu_panel.h"

#include <inttypes.h>
#include <string.h>

/* The list of a call's products and its scratch, in the memory that an op's threads share. */
typedef struct product_list {
    wb_matmul *products;
    int64_t *first;
    int64_t count, work;
} product_list;

static wb_status list_open(wb_device *dev, const wb_grouped *g, product_list *out) {
    const int64_t most = 2 * (int64_t)g->n_groups;
    void *shared = NULL;
    WB_TRY(wb_cpu_shared_reserve(dev, wb_cpu_group_bytes(most), &shared));
    WB_TRY(wb_cpu_scratch_reserve(dev, PRODUCT_FLOATS * sizeof(float)));
    *out = (product_list){.products = shared};
    out->first = (int64_t *)(void *)(out->products + most);
    return WB_OK;
}

static void list_add(product_list *list, wb_matmul product) {
    list->products[list->count++] = product;
    list->work += WB_CPU(product_work)(&product);
}

static wb_status list_run(wb_device *dev, const product_list *list) {
    const wb_matmul *opened = NULL;
    if (list->work == 0) return WB_OK;
    WB_TRY(WB_CPU(products_open)(dev, list->count, list->products, &opened));
    WB_CPU(run_products)(dev, list->count, opened, list->work, list->first);
    WB_CPU(products_close)(dev, list->count, list->products, opened);
    return WB_OK;
}

/* The gradient of the weights of a group's n rows. */
static wb_matmul group_wgrad(const wb_grouped *g, int64_t n, wb_rows dy, wb_rows x, float *dw) {
    wb_matmul m = wb_matmul_wgrad(n, g->w.cols, g->w.rows, dy, x, dw);
    m.accumulate = !g->overwrites;
    return m;
}

static wb_weight group_weight(const wb_grouped *g, int32_t i) {
    wb_weight w = g->w;
    w.data = (char *)w.data + (size_t)(i * w.rows * w.cols) * wb_dtype_size(w.dtype);
    return w;
}

static int64_t n_rows(const wb_grouped *g) {
    return g->offsets[g->n_groups];
}

/* The rows of x in the order of the groups. */
static wb_rows input(const wb_grouped *g, wb_rows x) {
    return g->gather ? g->gathered : x;
}

wb_status WB_CPU(grouped_matmul)(wb_device *dev, const wb_grouped *g, wb_rows x, wb_rows y, wb_rows act) {
    const int64_t out = g->w.rows, in = g->w.cols;
    product_list list;
    WB_TRY(operand_check("grouped_matmul", "x", x.dtype));
    WB_TRY(operand_check_like("grouped_matmul", "y", y.dtype, "x", x.dtype));
    WB_TRY(operand_check("grouped_matmul", "w", g->w.dtype));
    if (g->w.packed && out % WB_PACKED_COLUMNS != 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "grouped_matmul: packed w: expected a multiple of %d rows, found %" PRId64,
                       WB_PACKED_COLUMNS, out);
    if (g->gather) WB_TRY(WB_CPU(gather_rows)(dev, n_rows(g), in, g->gather, x, g->gathered));
    WB_TRY(list_open(dev, g, &list));
    const wb_rows from = input(g, x);
    for (int32_t i = 0; i < g->n_groups; i++) {
        const int64_t start = g->offsets[i], n = g->offsets[i + 1] - start;
        if (n == 0) continue;
        list_add(&list, wb_matmul_forward(n, wb_rows_from(from, start * in), group_weight(g, i),
                                          wb_rows_from(y, start * out)));
    }
    WB_TRY(list_run(dev, &list));
    return act.data ? WB_CPU(swiglu_forward)(dev, n_rows(g), out / 2, y, act) : WB_OK;
}

wb_status WB_CPU(grouped_matmul_backward)(wb_device *dev, const wb_grouped *g, wb_rows x, wb_rows dy,
                                          float *dw, wb_rows dx, wb_rows gate_up) {
    const int64_t out = g->w.rows, in = g->w.cols;
    product_list list;
    WB_TRY(operand_check("grouped_matmul_backward", "x", x.dtype));
    WB_TRY(operand_check_like("grouped_matmul_backward", "dy", dy.dtype, "x", x.dtype));
    WB_TRY(operand_check_like("grouped_matmul_backward", "dx", dx.dtype, "x", x.dtype));
    WB_TRY(operand_check("grouped_matmul_backward", "w", g->w.dtype));
    WB_TRY(operand_check_rows("grouped_matmul_backward", g->w.packed));
    WB_TRY(list_open(dev, g, &list));
    const wb_rows from = input(g, x);
    for (int32_t i = 0; i < g->n_groups; i++) {
        const int64_t start = g->offsets[i], n = g->offsets[i + 1] - start;
        const wb_rows rows = wb_rows_from(dy, start * out);
        float *const own = dw + i * out * in;
        if (n == 0 && g->overwrites) memset(own, 0, (size_t)(out * in) * sizeof *own);
        if (n == 0) continue;
        list_add(&list, group_wgrad(g, n, rows, wb_rows_from(from, start * in), own));
        list_add(&list, wb_matmul_dgrad(n, rows, group_weight(g, i), wb_rows_from(dx, start * in), false));
    }
    WB_TRY(list_run(dev, &list));
    return gate_up.data ? WB_CPU(swiglu_backward)(dev, n_rows(g), in, gate_up, dx, gate_up) : WB_OK;
}
