/* cpu_pack.c - packing panels of B. See cpu_panel.h. */
#include "cpu/cpu_blocks.h"

#if defined(__AVX2__) && defined(__FMA__)

/* Columns [0, n / step * step) of BLOCK rows to the columns of `to`; returns how many were done. Meanwhile
 * asks for the rows that come next, one line between two stores, into the second-level cache, since a panel
 * fills the first. */
WB_INLINE int64_t pack_blocks(const bool is_f32, const char *const row[BLOCK], const char *const next[BLOCK],
                              int64_t n, int64_t width, float *to) {
    const int64_t step = is_f32 ? BLOCK : 2 * BLOCK;
    int64_t k = 0;
    for (; k + step <= n; k += step, to += step * width) {
        const int64_t offset = k * (is_f32 ? 4 : 2);
        const block_columns block = load_block(row, offset);
        WB_UNROLL
        for (int i = 0; i < BLOCK; i++) {
            if (offset % 64 == 0) _mm_prefetch(next[i] + offset, _MM_HINT_T1);
            if (is_f32) {
                block_store(to + i * width, block.v[i]);
            } else {
                block_store(to + 2 * i * width, block_lower_bf16(block.v[i]));
                block_store(to + (2 * i + 1) * width, block_upper_bf16(block.v[i]));
            }
        }
    }
    return k;
}

#else

enum { BLOCK = 8 };

WB_INLINE int64_t pack_blocks(const bool is_f32, const char *const row[BLOCK], const char *const next[BLOCK],
                              int64_t n, int64_t width, float *to) {
    (void)is_f32, (void)row, (void)next, (void)n, (void)width, (void)to;
    return 0;
}

#endif

static void pack_rows(const bool is_f32, const char *const row[BLOCK], const char *const next[BLOCK],
                      int64_t k, int64_t width, float *to) {
    for (int64_t i = is_f32 ? pack_blocks(true, row, next, k, width, to)
                            : pack_blocks(false, row, next, k, width, to);
         i < k; i++)
        for (int j = 0; j < BLOCK; j++) {
            const char *at = row[j] + i * (is_f32 ? 4 : 2);
            const void *from = at;
            to[i * width + j] = is_f32 ? *(const float *)from : wb_bf16_to_f32(*(const uint16_t *)from);
        }
}

void WB_CPU(pack_transposed)(matrix_rows m, int64_t first, int64_t rows, int64_t begin, int64_t k,
                             int64_t width, float *to) {
    const int64_t size = (int64_t)wb_dtype_size(m.dtype);
    for (int64_t column = 0; column < width; column += BLOCK) {
        const char *row[BLOCK], *next[BLOCK];
        for (int64_t j = 0; j < BLOCK; j++) {
            const int64_t at = first + column + j;
            row[j] = (const char *)m.data + (row_start(m, at < rows ? at : rows - 1) + begin) * size;
            next[j] = (const char *)m.data +
                      (row_start(m, at + width < rows ? at + width : rows - 1) + begin) * size;
        }
        pack_rows(m.dtype == WB_F32, row, next, k, width, to + column);
    }
}

void WB_CPU(pack_straight)(matrix_rows m, int64_t first, int64_t k, int64_t begin, int64_t end, int64_t width,
                           float *to) {
    const int64_t ahead = 12; /* rows that the memory is asked for beforehand */
    const int64_t size = m.dtype == WB_F32 ? 4 : 2;
    int64_t columns = end - begin < width ? end - begin : width;
    for (int64_t i = 0; i < k; i++) {
        int64_t start = row_start(m, first + i) + begin;
        int64_t later = row_start(m, first + (i + ahead < k ? i + ahead : k - 1)) + begin;
        const char *ask = (const char *)m.data + later * size;
        for (int64_t line = 0; line < columns * size; line += 64) lanes_prefetch(ask + line);
        float *out = to + i * width;
        if (m.dtype == WB_F32) {
            const float *row = (const float *)m.data + start;
            if (columns == width)
                memcpy(out, row, (size_t)width * sizeof(float));
            else
                for (int64_t j = 0; j < width; j++) out[j] = j < columns ? row[j] : 0.0f;
        } else {
            const uint16_t *row = (const uint16_t *)m.data + start;
            if (columns == width)
                for (int j = 0; j < width; j++) out[j] = wb_bf16_to_f32(row[j]);
            else
                for (int64_t j = 0; j < width; j++) out[j] = j < columns ? wb_bf16_to_f32(row[j]) : 0.0f;
        }
    }
}
