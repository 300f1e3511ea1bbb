/* cpu_row.h - what ops do with one row of f32: its norm and the gradient of that, the rotation of a head, the
 * clamp. One place, so that an op that does several steps at once has the bits of the ops that do one
 * each. */
#ifndef WB_CPU_ROW_H
#define WB_CPU_ROW_H

#include "cpu/cpu_lanes.h"
#include "norm_rules.h"

static inline float row_inverse_rms(const float *x, int64_t width, float eps) {
    float mean = row_dot(x, x, width) / (float)width;
    return 1.0f / sqrtf(mean + eps);
}

/* y may be x. */
static inline void row_norm(int64_t width, const float *x, wb_norm norm, float *y) {
    const float r = row_inverse_rms(x, width, norm.eps), offset = wb_norm_offset(norm);
    if (norm.w) {
        WB_INDEPENDENT
        for (int64_t i = 0; i < width; i++) y[i] = x[i] * r * (norm.w[i] + offset);
    } else {
        WB_INDEPENDENT
        for (int64_t i = 0; i < width; i++) y[i] = x[i] * r;
    }
}

/* That of row_norm_backward where there is no w. */
static inline void row_plain_norm_backward(int64_t width, const float *x, float r, const float *dy,
                                           float *dx) {
    const float shrink = r * r * r * row_dot(dy, x, width) / (float)width;
    WB_INDEPENDENT
    for (int64_t i = 0; i < width; i++) dx[i] = fmaf(-shrink, x[i], r * dy[i]);
}

/* dx = r w dy - x r^3 <w dy, x> / width; r: row_inverse_rms; dx may be dy. */
static inline void row_norm_backward(int64_t width, const float *x, wb_norm norm, float r, const float *dy,
                                     float *dx) {
    if (!norm.w) {
        row_plain_norm_backward(width, x, r, dy, dx);
        return;
    }
    const float *w = norm.w, offset = wb_norm_offset(norm);
    float sum[WB_LANES] = {0.0f};
    int64_t i = 0;
    for (; i + WB_LANES <= width; i += WB_LANES)
        for (int lane = 0; lane < WB_LANES; lane++)
            sum[lane] = fmaf((w[i + lane] + offset) * dy[i + lane], x[i + lane], sum[lane]);
    for (int lane = 0; i < width; i++, lane++) sum[lane] = fmaf((w[i] + offset) * dy[i], x[i], sum[lane]);
    float shrink = r * r * r * wb_lanes_sum(sum) / (float)width;
    WB_INDEPENDENT
    for (i = 0; i < width; i++) dx[i] = fmaf(-shrink, x[i], r * (w[i] + offset) * dy[i]);
}

static inline void row_clamp(int64_t n, float limit, float *x) {
    for (int64_t i = 0; i < n; i++) {
        float above = x[i] < -limit ? -limit : x[i];
        x[i] = above > limit ? limit : above;
    }
}

/* c and s: cosines and sines of the head's position, [half]; sign -1 rotates back. */
static inline void row_rotate(int64_t half, const float *restrict c, const float *restrict s, float sign,
                              float *restrict low, float *restrict high) {
    for (int64_t i = 0; i < half; i++) {
        float sine = sign * s[i], a = low[i], b = high[i];
        low[i] = fmaf(a, c[i], -(b * sine));
        high[i] = fmaf(b, c[i], a * sine);
    }
}

/* The same for pairs side by side, x[2 half]. */
static inline void row_rotate_pairs(int64_t half, const float *restrict c, const float *restrict s,
                                    float sign, float *restrict x) {
    for (int64_t i = 0; i < half; i++) {
        float sine = sign * s[i], a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = fmaf(a, c[i], -(b * sine));
        x[2 * i + 1] = fmaf(b, c[i], a * sine);
    }
}

#endif
