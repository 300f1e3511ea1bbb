/* cpu_operands.h - an op's operands as f32: where they are f32 the memory itself; where they are bf16 a copy,
 * widened before the op and rounded into the operand after it.
 *
 * Owns: the one place where an op with operands of one dtype meets bf16, so that it is written once, for f32,
 * and bf16 gives its bits, rounded. Refuses: attention, which reads bf16 where it lies. */
#ifndef WB_CPU_OPERANDS_H
#define WB_CPU_OPERANDS_H

#include "cpu/cpu_lanes.h"
#include "operand_check.h"

typedef enum operand_use { READ = 1, WRITE = 2, UPDATE = READ | WRITE } operand_use;

typedef struct operand {
    /* as messages call it */
    const char *name;
    wb_rows rows;
    int64_t n; /* elements */
    operand_use use;
    /* [n], what the op works on; set by operands_open */
    float *f32;
} operand;

/* Readies list[count] for op `op`. INVALID_ARGUMENT names an operand that is neither f32 nor bf16, or not of
 * the first one's dtype. Operands may be the same memory: a bf16 one that is written gets its values at the
 * close alone. What was open before is lost. */
wb_status WB_CPU(operands_open)(wb_device *dev, const char *op, operand *list, int count);

/* Rounds what the op wrote into bf16 operands. */
void WB_CPU(operands_close)(wb_device *dev, const operand *list, int count);

/* The same for a list of products, whose A and C may be f32 or bf16 each: *opened_out is `list`, or a copy of
 * it, until the next op, whose A and C are f32. B is left as it is. (cpu_products.c) */
wb_status WB_CPU(products_open)(wb_device *dev, int64_t count, const wb_matmul *list,
                                const wb_matmul **opened_out);
void WB_CPU(products_close)(wb_device *dev, int64_t count, const wb_matmul *list, const wb_matmul *opened);

static inline void widen(int64_t n, const uint16_t *restrict from, float *restrict to) {
    for (int64_t i = 0; i < n; i++) to[i] = wb_bf16_to_f32(from[i]);
}

/* To nearest even. */
static inline void narrow(int64_t n, const float *restrict from, uint16_t *restrict to) {
    for (int64_t i = 0; i < n; i++) to[i] = wb_f32_to_bf16(from[i]);
}

/* Elements [first, first + n) of `rows` as f32. */
static inline void rows_load(wb_rows rows, int64_t first, int64_t n, float *restrict to) {
    if (rows.dtype == WB_F32)
        memcpy(to, (const float *)rows.data + first, (size_t)n * sizeof(float));
    else
        widen(n, (const uint16_t *)rows.data + first, to);
}

/* Elements [first, first + n) of `rows` (=), rounded where they are bf16. */
static inline void rows_store(int64_t n, const float *restrict from, wb_rows rows, int64_t first) {
    if (rows.dtype == WB_F32)
        memcpy((float *)rows.data + first, from, (size_t)n * sizeof(float));
    else
        narrow(n, from, (uint16_t *)rows.data + first);
}

#endif
