/* cpu_pack.c - packing panels of B. See cpu_panel.h. */
#include "cpu/cpu_blocks.h"

#if defined(__AVX2__) && defined(__FMA__)

WB_INLINE void store_columns(eight_columns columns, float *to) {
    WB_UNROLL
    for (int i = 0; i < 8; i++) _mm256_storeu_ps(to + i * PANEL, columns.v[i]);
}

/* Eight rows, columns [0, n / 8 * 8), to the columns of `to`; returns how many were done. Meanwhile asks
 * for the rows that come next: the memory works while the tiles compute. */
WB_INLINE int64_t pack_8_f32(const float *const row[8], const float *const next[8], int64_t n, float *to) {
    int64_t k = 0;
    for (; k + 16 <= n; k += 16) {
        for (int j = 0; j < 8; j++) _mm_prefetch((const char *)(next[j] + k), _MM_HINT_T0);
        store_columns(load_8x8_f32(row, k), to + k * PANEL);
        store_columns(load_8x8_f32(row, k + 8), to + (k + 8) * PANEL);
    }
    for (; k + 8 <= n; k += 8) store_columns(load_8x8_f32(row, k), to + k * PANEL);
    return k;
}

WB_INLINE int64_t pack_8_bf16(const uint16_t *const row[8], const uint16_t *const next[8], int64_t n,
                              float *to) {
    int64_t k = 0;
    for (; k + 32 <= n; k += 32) {
        for (int j = 0; j < 8; j++) _mm_prefetch((const char *)(next[j] + k), _MM_HINT_T0);
        for (int64_t at = k; at < k + 32; at += 8) store_columns(load_8x8_bf16(row, at), to + at * PANEL);
    }
    for (; k + 8 <= n; k += 8) store_columns(load_8x8_bf16(row, k), to + k * PANEL);
    return k;
}

#else

WB_INLINE int64_t pack_8_f32(const float *const row[8], const float *const next[8], int64_t n, float *to) {
    (void)row, (void)next, (void)n, (void)to;
    return 0;
}

WB_INLINE int64_t pack_8_bf16(const uint16_t *const row[8], const uint16_t *const next[8], int64_t n,
                              float *to) {
    (void)row, (void)next, (void)n, (void)to;
    return 0;
}

#endif

void WB_CPU(pack_transposed)(matrix_rows m, int64_t first, int64_t rows, int64_t begin, int64_t k,
                             float *to) {
    for (int64_t eight = 0; eight < PANEL; eight += 8) {
        int64_t start[8], after[8], done;
        for (int64_t j = 0; j < 8; j++) {
            int64_t row = first + eight + j;
            start[j] = row_start(m, row < rows ? row : rows - 1) + begin;
            after[j] = row_start(m, row + PANEL < rows ? row + PANEL : rows - 1) + begin;
        }
        float *out = to + eight;
        if (m.dtype == WB_F32) {
            const float *row[8], *next[8];
            for (int j = 0; j < 8; j++) row[j] = (const float *)m.data + start[j];
            for (int j = 0; j < 8; j++) next[j] = (const float *)m.data + after[j];
            done = pack_8_f32(row, next, k, out);
            for (; done < k; done++)
                for (int j = 0; j < 8; j++) out[done * PANEL + j] = row[j][done];
        } else {
            const uint16_t *row[8], *next[8];
            for (int j = 0; j < 8; j++) row[j] = (const uint16_t *)m.data + start[j];
            for (int j = 0; j < 8; j++) next[j] = (const uint16_t *)m.data + after[j];
            done = pack_8_bf16(row, next, k, out);
            for (; done < k; done++)
                for (int j = 0; j < 8; j++) out[done * PANEL + j] = wb_bf16_to_f32(row[j][done]);
        }
    }
}

void WB_CPU(pack_straight)(matrix_rows m, int64_t first, int64_t k, int64_t begin, int64_t end, float *to) {
    const int64_t ahead = 12; /* rows that the memory is asked for beforehand */
    int64_t columns = end - begin < PANEL ? end - begin : PANEL;
    for (int64_t i = 0; i < k; i++) {
        int64_t start = row_start(m, first + i) + begin;
        int64_t later = row_start(m, first + (i + ahead < k ? i + ahead : k - 1)) + begin;
        lanes_prefetch((const char *)m.data + later * (m.dtype == WB_F32 ? 4 : 2));
        float *out = to + i * PANEL;
        if (m.dtype == WB_F32) {
            const float *row = (const float *)m.data + start;
            if (columns == PANEL)
                memcpy(out, row, PANEL * sizeof(float));
            else
                for (int64_t j = 0; j < PANEL; j++) out[j] = j < columns ? row[j] : 0.0f;
        } else {
            const uint16_t *row = (const uint16_t *)m.data + start;
            if (columns == PANEL)
                for (int j = 0; j < PANEL; j++) out[j] = wb_bf16_to_f32(row[j]);
            else
                for (int64_t j = 0; j < PANEL; j++) out[j] = j < columns ? wb_bf16_to_f32(row[j]) : 0.0f;
        }
    }
}
