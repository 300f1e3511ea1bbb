/* cpu_recurrent.h - what the ops of recurrent layers share: the state of a run, and the rows of padding. */
#ifndef WB_CPU_RECURRENT_H
#define WB_CPU_RECURRENT_H

#include "cpu/cpu_operands.h"

/* NULL: there is none. */
static inline float *run_state(const wb_sequences *of, const wb_sequence_run *run) {
    if (!of->states) return NULL;
    return (float *)(void *)(of->states + run->state * of->state_stride);
}

/* Rows [begin, end) of [T, width] (=) 0. */
static inline void clear_rows(wb_rows rows, int64_t width, int64_t begin, int64_t end) {
    const size_t size = wb_dtype_size(rows.dtype) * (size_t)width;
    if (end > begin) memset((char *)rows.data + (size_t)begin * size, 0, (size_t)(end - begin) * size);
}

/* The rows of tokens that no run has (=) 0. */
static inline void clear_padding(const wb_sequences *of, wb_rows rows, int64_t width) {
    int64_t end = 0;
    for (int64_t i = 0; i < of->n_runs; i++) {
        const wb_sequence_run *run = of->runs + i;
        if (run->n == 0) continue;
        clear_rows(rows, width, end, run->start);
        end = run->start + run->n;
    }
    clear_rows(rows, width, end, of->T);
}

#endif
