/* hyper_rules.h - the weights of hyper-connections, an element at a time (not installed): the order of sums
 * in the Sinkhorn iterations, forward and backward, which both backends have from here. Refuses: sums over
 * H. */
#ifndef WB_HYPER_RULES_H
#define WB_HYPER_RULES_H

#include "wb_exact_math.h"

/* Products of a token and their place: those of pre, of post, or of C, and whose scale they have. */
static WB_HD int hyper_kind(int S, int column) {
    return column < S ? 0 : column < 2 * S ? 1 : 2;
}

/* z of a product: the argument of its sigmoid or softmax. */
static WB_HD float hyper_logit(float product, float r, float scale, float base) {
    return wb_fma(wb_mul(product, r), scale, base);
}

static WB_HD float hyper_pre(float z, float eps) {
    return wb_add(wb_sigmoid(z), eps);
}

static WB_HD float hyper_post(float z) {
    return wb_mul(2.0f, wb_sigmoid(z));
}

/* Their gradients of z from d, that of the weight. */
static WB_HD float hyper_sigmoid_gradient(float z, float factor, float d) {
    const float s = wb_sigmoid(z);
    return wb_mul(wb_mul(factor, d), wb_mul(s, wb_sub(1.0f, s)));
}

/* Element k of the softmax of row j of z[S, S]. */
static WB_HD float hyper_softmax(const float *z, int S, int j, int k) {
    const float *row = z + j * S;
    float max = row[0], sum = 0.0f;
    for (int i = 1; i < S; i++) max = row[i] > max ? row[i] : max;
    for (int i = 0; i < S; i++) sum = wb_add(sum, wb_expf(wb_sub(row[i], max)));
    return wb_div(wb_expf(wb_sub(row[k], max)), sum);
}

/* Steps of Sinkhorn: a column each, in even ones, then a row each, in odd ones. */
static WB_HD int hyper_steps(int iterations) {
    return 2 * iterations - 1;
}

/* Element i of the line through (j, k) that step `step` divides by its sum. */
static WB_HD int hyper_place(int S, int step, int j, int k, int i) {
    return step % 2 == 0 ? i * S + k : j * S + i;
}

static WB_HD float hyper_divisor(const float *C, int S, int step, int j, int k, float eps) {
    float sum = 0.0f;
    for (int i = 0; i < S; i++) sum = wb_add(sum, C[hyper_place(S, step, j, k, i)]);
    return wb_add(sum, eps);
}

/* The gradient of element (j, k) before a step, from `divided`, what the step made, and d, the gradient of
 * that. */
static WB_HD float hyper_step_gradient(const float *divided, const float *d, int S, int step, int j, int k,
                                       float divisor) {
    float dot = 0.0f;
    for (int i = 0; i < S; i++) {
        const int place = hyper_place(S, step, j, k, i);
        dot = wb_fma(d[place], divided[place], dot);
    }
    return wb_div(wb_sub(d[j * S + k], dot), divisor);
}

/* The gradient of z of element (j, k) from d, that of the softmax. */
static WB_HD float hyper_softmax_gradient(const float *softmax, const float *d, int S, int j, int k) {
    float dot = 0.0f;
    for (int i = 0; i < S; i++) dot = wb_fma(d[j * S + i], softmax[j * S + i], dot);
    return wb_mul(softmax[j * S + k], wb_sub(d[j * S + k], dot));
}

#endif
