/* cpu_operands.c - see cpu_operands.h. */
#include "cpu/cpu_operands.h"

/* Elements of one task, and of a cache line. */
enum { ELEMENTS = 8192, LINE = 16 };

static int64_t whole_lines(int64_t n) {
    return (n + LINE - 1) / LINE * LINE;
}

static wb_status check(const char *op, const operand *list, int count) {
    for (int i = 0; i < count; i++)
        WB_TRY(operand_check_like(op, list[i].name, list[i].rows.dtype, list[0].name, list[0].rows.dtype));
    return WB_OK;
}

/* Copies the operands that are used so between their own memory and the f32 one. */
static void copy_operands(wb_device *dev, const operand *list, int count, operand_use use) {
    int64_t total = 0;
    for (int i = 0; i < count; i++) total += list[i].n;
    int threads = wb_cpu_threads(dev, total);
    for (int i = 0; i < count; i++) {
        const operand *o = list + i;
        if (!(o->use & use)) continue;
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t begin = 0; begin < o->n; begin += ELEMENTS) {
            int64_t n = o->n - begin < ELEMENTS ? o->n - begin : ELEMENTS;
            if (use == READ)
                rows_load(o->rows, begin, n, o->f32 + begin);
            else
                rows_store(n, o->f32 + begin, o->rows, begin);
        }
    }
}

wb_status WB_CPU(operands_open)(wb_device *dev, const char *op, operand *list, int count) {
    int64_t total = 0;
    void *memory = NULL;
    WB_TRY(check(op, list, count));
    for (int i = 0; i < count; i++) list[i].f32 = list[i].rows.data;
    if (list[0].rows.dtype == WB_F32) return WB_OK;
    for (int i = 0; i < count; i++) total += whole_lines(list[i].n);
    WB_TRY(wb_cpu_operands_reserve(dev, (size_t)total * sizeof(float), &memory));
    float *at = memory;
    for (int i = 0; i < count; at += whole_lines(list[i++].n)) list[i].f32 = at;
    copy_operands(dev, list, count, READ);
    return WB_OK;
}

void WB_CPU(operands_close)(wb_device *dev, const operand *list, int count) {
    if (list[0].rows.dtype == WB_F32) return;
    copy_operands(dev, list, count, WRITE);
}
