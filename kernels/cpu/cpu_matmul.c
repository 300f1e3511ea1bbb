/* cpu_matmul.c - lists of matrix products.
 *
 * Owns: cutting a list into tasks of one thread each, and a task into panels of B that stay in the cache
 * while the rows of A pass. Each element of C is one fma chain over ascending k; where the cuts fall
 * changes no bit.
 */
#include "cpu/cpu_operands.h"
#include "cpu/cpu_panel.h"

#include <inttypes.h>

/* A task's rows of A, M_BLOCK x K_BLOCK, stay in the second-level cache. */
enum { N_BLOCK = 512 };
_Static_assert(M_BLOCK % TILE_ROWS == 0, "a block is whole tiles");

/* ---- one task -------------------------------------------------------------------------------- */

/* Tiles of rows [m, m_end) of A, columns [k0, k0 + k): each [k][TILE_ROWS]. */
static void pack_a(const wb_matmul *p, int64_t m, int64_t m_end, int64_t k0, int64_t k, float *to) {
    for (; m < m_end; m += TILE_ROWS, to += K_BLOCK * TILE_ROWS) {
        const float *a = (const float *)p->a.data + m * p->a_row + k0 * p->a_col;
        int64_t rows = m_end - m < TILE_ROWS ? m_end - m : TILE_ROWS;
        for (int64_t i = 0; i < k; i++)
            for (int64_t r = 0; r < rows; r++) to[i * TILE_ROWS + r] = a[r * p->a_row + i * p->a_col];
    }
}

/* The rows of B's longer lines: columns of a transposed B, rows of a straight one. */
static matrix_rows b_rows(const wb_matmul *p) {
    return (matrix_rows){p->b.data, p->b.dtype, p->b_row == 1 ? p->b_col : p->b_row, NULL};
}

static void pack_b(const wb_matmul *p, int64_t n, int64_t n_end, int64_t k0, int64_t k, float *to) {
    if (p->b_row == 1)
        WB_CPU(pack_transposed)(b_rows(p), n, n_end, k0, k, PANEL, to);
    else
        WB_CPU(pack_straight)(b_rows(p), k0, k, n, n_end, PANEL, to);
}

typedef struct block {
    int64_t m, m_end, n, n_end;
} block;

static void run_k_block(const wb_matmul *p, block at, int64_t k0, int64_t k, float *a_packed,
                        float *b_packed) {
    int64_t rows = at.m_end - at.m, width = (int64_t)panels_of(rows) * PANEL;
    tile_rows a = {(const float *)p->a.data + at.m * p->a_row + k0, p->a_col != 1, p->a_row};
    if (a.packed) {
        pack_a(p, at.m, at.m_end, k0, k, a_packed);
        a.a = a_packed;
    }
    for (int64_t n = at.n; n < at.n_end; n += width) {
        int64_t columns = at.n_end - n < width ? at.n_end - n : width;
        for (int64_t done = 0; done < columns; done += PANEL)
            pack_b(p, n + done, at.n_end, k0, k, b_packed + done * K_BLOCK);
        WB_CPU(tiles)
        (rows, columns, k, a, b_packed, p->accumulate || k0 > 0, (float *)p->c.data + at.m * p->ldc + n,
         p->ldc);
    }
}

static void run_block(const wb_matmul *p, block at, float *scratch) {
    int64_t rows = at.m_end - at.m;
    if (p->b_packed) {
        WB_CPU(packed)(p, at.m, at.m_end, at.n, at.n_end);
        return;
    }
    if (p->b_row == 1 && rows > TILE_ROWS && rows <= SWAPPED_ROWS) {
        WB_CPU(swapped)(p, at.m, at.m_end, at.n, at.n_end, scratch);
        return;
    }
    if (p->b_row == 1)
        at.n += WB_CPU(thin_transposed)(p, at.m, rows, at.n, at.n_end, NULL);
    else if (p->a_col == 1)
        at.n += WB_CPU(thin_straight)(rows, b_rows(p), p->K, at.n, at.n_end,
                                      (const float *)p->a.data + at.m * p->a_row, p->a_row, p->accumulate,
                                      (float *)p->c.data + at.m * p->ldc + at.n, p->ldc);
    if (at.n == at.n_end) return;
    if (p->K == 0) run_k_block(p, at, 0, 0, scratch, scratch + M_BLOCK * K_BLOCK);
    for (int64_t k0 = 0; k0 < p->K; k0 += K_BLOCK) {
        int64_t k = p->K - k0 < K_BLOCK ? p->K - k0 : K_BLOCK;
        run_k_block(p, at, k0, k, scratch, scratch + M_BLOCK * K_BLOCK);
    }
}

void WB_CPU(product)(const wb_matmul *p, float *scratch) {
    for (int64_t m = 0; m < p->M; m += M_BLOCK) {
        block at = {m, m + M_BLOCK < p->M ? m + M_BLOCK : p->M, 0, p->N};
        run_block(p, at, scratch);
    }
}

/* ---- the list -------------------------------------------------------------------------------- */

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* Packing a panel costs about as much as this many rows; a multiply-add is about a tenth of an operation
 * on a row. */
enum { PACKING_ROWS = 6, FMA_PER_OPERATION = 10 };

static int64_t m_block(const wb_matmul *p) {
    int64_t even = ceil_div(p->M, ceil_div(p->M, M_BLOCK));
    return ceil_div(even, TILE_ROWS) * TILE_ROWS;
}

/* Tasks of product i are [first[i], first[i + 1]): its blocks of rows, for each block of n_block columns. */
static void count_tasks(int64_t count, const wb_matmul *list, int64_t n_block, int64_t *first) {
    first[0] = 0;
    for (int64_t i = 0; i < count; i++) {
        const wb_matmul *p = list + i;
        bool empty = p->M <= 0 || p->N <= 0;
        first[i + 1] = first[i] + (empty ? 0 : ceil_div(p->M, m_block(p)) * ceil_div(p->N, n_block));
    }
}

static int64_t product_of_task(int64_t count, const int64_t *first, int64_t task) {
    int64_t low = 0, high = count;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (first[middle] <= task)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void run_task(int64_t count, const wb_matmul *list, int64_t n_block, const int64_t *first,
                     int64_t task, float *scratch) {
    int64_t i = product_of_task(count, first, task);
    const wb_matmul *p = list + i;
    int64_t m_size = m_block(p), m_blocks = ceil_div(p->M, m_size), local = task - first[i];
    block at = {.m = local % m_blocks * m_size, .n = local / m_blocks * n_block};
    at.m_end = at.m + m_size < p->M ? at.m + m_size : p->M;
    at.n_end = at.n + n_block < p->N ? at.n + n_block : p->N;
    run_block(p, at, scratch);
}

int64_t WB_CPU(product_work)(const wb_matmul *p) {
    return (p->M + PACKING_ROWS) * p->N * (p->K + 1);
}

static wb_status check(int64_t count, const wb_matmul *list) {
    for (int64_t i = 0; i < count; i++) {
        const wb_matmul *p = list + i;
        wb_status status = operand_check("matmul", "a", p->a.dtype);
        if (status == WB_OK) status = operand_check("matmul", "b", p->b.dtype);
        if (status == WB_OK) status = operand_check("matmul", "c", p->c.dtype);
        if (status != WB_OK) return wb_fail_context(status, "product %" PRId64, i);
        if ((p->a_row != 1 && p->a_col != 1) || (p->b_row != 1 && p->b_col != 1))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "matmul %" PRId64 ": strides: expected one of 1, found a %" PRId64 ", %" PRId64
                           " and b %" PRId64 ", %" PRId64,
                           i, p->a_row, p->a_col, p->b_row, p->b_col);
        if (p->b_packed && (p->a_col != 1 || p->b_row != 1 || p->b_col != p->K || p->N % WB_PACKED_COLUMNS))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "matmul %" PRId64 ": packed b: expected a forward of a multiple of %d columns, "
                           "found %" PRId64 " columns, strides a %" PRId64 ", %" PRId64 " and b %" PRId64
                           ", %" PRId64,
                           i, WB_PACKED_COLUMNS, p->N, p->a_row, p->a_col, p->b_row, p->b_col);
    }
    return WB_OK;
}

void WB_CPU(run_products)(wb_device *dev, int64_t count, const wb_matmul *list, int64_t work,
                          int64_t *first) {
    int threads = wb_cpu_threads(dev, work / FMA_PER_OPERATION);
    if (threads == 1) {
        count_tasks(count, list, INT32_MAX, first);
        for (int64_t task = 0; task < first[count]; task++)
            run_task(count, list, INT32_MAX, first, task, wb_cpu_serial_scratch(dev));
        return;
    }
    int64_t n_block = N_BLOCK;
    count_tasks(count, list, n_block, first);
    while (first[count] < 4 * threads && n_block > MAX_PANELS * PANEL)
        count_tasks(count, list, n_block /= 2, first);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < first[count]; task++)
        run_task(count, list, n_block, first, task, wb_cpu_scratch(dev));
}

wb_status WB_CPU(matmul)(wb_device *dev, int64_t count, const wb_matmul *list) {
    int64_t work = 0;
    void *shared = NULL;
    const wb_matmul *opened = NULL;
    WB_TRY(check(count, list));
    for (int64_t i = 0; i < count; i++) work += WB_CPU(product_work)(list + i);
    if (work == 0) return WB_OK;
    WB_TRY(wb_cpu_shared_reserve(dev, (size_t)(count + 1) * sizeof(int64_t), &shared));
    WB_TRY(wb_cpu_scratch_reserve(dev, PRODUCT_FLOATS * sizeof(float)));
    WB_TRY(WB_CPU(products_open)(dev, count, list, &opened));
    WB_CPU(run_products)(dev, count, opened, work, shared);
    WB_CPU(products_close)(dev, count, list, opened);
    return WB_OK;
}
