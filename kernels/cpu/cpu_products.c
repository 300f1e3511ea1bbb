/* cpu_products.c - products of matrices with bf16 operands: f32 copies of A and C beside the list of the
 * caller. See cpu_operands.h. Refuses: B, which the panels widen while they are packed. */
#include "cpu/cpu_operands.h"

enum { LINE = 16 }; /* floats of a cache line */

/* A matrix in memory: `count` lines of `length` elements, `stride` apart. Its f32 copy has no gaps. */
typedef struct matrix_lines {
    wb_rows rows;
    int64_t count, length, stride;
} matrix_lines;

static matrix_lines a_lines(const wb_matmul *p) {
    if (p->a_col == 1) return (matrix_lines){p->a, p->M, p->K, p->a_row};
    return (matrix_lines){p->a, p->K, p->M, p->a_col};
}

static matrix_lines c_lines(const wb_matmul *p) {
    return (matrix_lines){p->c, p->M, p->N, p->ldc};
}

/* Floats of the copy of `m`, in whole cache lines; of f32 none. */
static int64_t copy_size(matrix_lines m) {
    return m.rows.dtype == WB_F32 ? 0 : (m.count * m.length + LINE - 1) / LINE * LINE;
}

static void widen_lines(int threads, matrix_lines m, float *copy) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < m.count; i++) rows_load(m.rows, i * m.stride, m.length, copy + i * m.length);
}

static void round_lines(int threads, const float *copy, matrix_lines m) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < m.count; i++) rows_store(m.length, copy + i * m.length, m.rows, i * m.stride);
}

static int64_t copies_size(int64_t count, const wb_matmul *list) {
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++) total += copy_size(a_lines(list + i)) + copy_size(c_lines(list + i));
    return total;
}

/* *p with f32 copies from `copy` on; returns how many floats they have. */
static int64_t open_product(int threads, wb_matmul *p, float *copy) {
    matrix_lines a = a_lines(p), c = c_lines(p);
    const int64_t a_size = copy_size(a), c_size = copy_size(c);
    if (a.rows.dtype != WB_F32) {
        widen_lines(threads, a, copy);
        p->a = wb_f32_rows(copy);
        if (p->a_col == 1)
            p->a_row = a.length;
        else
            p->a_col = a.length;
    }
    if (c.rows.dtype != WB_F32) {
        if (p->accumulate) widen_lines(threads, c, copy + a_size);
        p->c = wb_f32_rows(copy + a_size);
        p->ldc = c.length;
    }
    return a_size + c_size;
}

wb_status WB_CPU(products_open)(wb_device *dev, int64_t count, const wb_matmul *list,
                                const wb_matmul **opened_out) {
    bool all_f32 = true;
    void *memory = NULL;
    for (int64_t i = 0; i < count; i++)
        all_f32 = all_f32 && list[i].a.dtype == WB_F32 && list[i].c.dtype == WB_F32;
    *opened_out = list;
    if (all_f32) return WB_OK;
    const int64_t size = copies_size(count, list);
    WB_TRY(
        wb_cpu_operands_reserve(dev, (size_t)size * sizeof(float) + (size_t)count * sizeof *list, &memory));
    float *copy = memory;
    wb_matmul *opened = (wb_matmul *)(void *)(copy + size);
    memcpy(opened, list, (size_t)count * sizeof *list);
    const int threads = wb_cpu_threads(dev, size);
    for (int64_t i = 0; i < count; i++) copy += open_product(threads, opened + i, copy);
    *opened_out = opened;
    return WB_OK;
}

void WB_CPU(products_close)(wb_device *dev, int64_t count, const wb_matmul *list, const wb_matmul *opened) {
    if (opened == list) return;
    const int threads = wb_cpu_threads(dev, copies_size(count, list));
    for (int64_t i = 0; i < count; i++)
        if (list[i].c.dtype != WB_F32) round_lines(threads, opened[i].c.data, c_lines(list + i));
}
