/* gradient_check.h - gradients of ops against central differences of a reference in double precision. */
#ifndef WB_GRADIENT_CHECK_H
#define WB_GRADIENT_CHECK_H

#include "ops_test.h"

/* A scalar function of x[n] in double precision. */
typedef double (*loss_function)(const double *x, const void *context);

static inline double *doubles(const float *x, int64_t n) {
    double *y = xalloc(n, sizeof(double));
    for (int64_t i = 0; i < n; i++) y[i] = (double)x[i];
    return y;
}

/* gradient[i] - base[i] is d loss / d x[i]. `base` NULL: zeros. */
static inline void check_gradient(loss_function loss, const void *context, const float *x, int64_t n,
                                  const float *gradient, const float *base, double tolerance,
                                  const char *what) {
    double *point = doubles(x, n);
    for (int64_t i = 0; i < n; i++) {
        const double h = 1e-5, at = point[i];
        point[i] = at + h;
        double above = loss(point, context);
        point[i] = at - h;
        double below = loss(point, context);
        point[i] = at;
        double expected = (above - below) / (2 * h) + (base ? (double)base[i] : 0.0);
        assert_close(gradient[i], expected, tolerance * (1.0 + fabs(expected)), what, i);
    }
    free(point);
}

#endif
