/* adamw_rules.h - one element's AdamW update, the same bits on both backends.
 *
 * Owns: the constants of a step, made on the host, and the order of an element's operations. A weight that
 * passes see in bf16 is wb_f32_to_bf16 of the new w. Refuses: memory, schedules. */
#ifndef WB_ADAMW_RULES_H
#define WB_ADAMW_RULES_H

#include "wb_exact_math.h"
#include "wb_ops_optimizer.h"

/* The constants of one step. */
typedef struct wb_adamw_step {
    float grad_scale, decay, keep1, add1, keep2, add2, rate, root_correction, eps;
} wb_adamw_step;

static inline wb_adamw_step wb_adamw_step_of(const wb_adamw *hyper) {
    const double beta1 = (double)hyper->beta1, beta2 = (double)hyper->beta2, lr = (double)hyper->lr;
    const double correction1 = 1.0 - pow(beta1, (double)hyper->step),
                 correction2 = 1.0 - pow(beta2, (double)hyper->step);
    wb_adamw_step s;
    s.grad_scale = hyper->grad_scale;
    s.decay = (float)(1.0 - lr * (double)hyper->weight_decay);
    s.keep1 = hyper->beta1, s.add1 = (float)(1.0 - beta1);
    s.keep2 = hyper->beta2, s.add2 = (float)(1.0 - beta2);
    s.rate = (float)(lr / correction1);
    s.root_correction = (float)(1.0 / sqrt(correction2));
    s.eps = hyper->eps;
    return s;
}

static WB_HD void wb_adamw_element(const wb_adamw_step *s, float g, float *m, float *v, float *w) {
    const float grad = wb_mul(g, s->grad_scale);
    *m = wb_fma(s->keep1, *m, wb_mul(s->add1, grad));
    *v = wb_fma(s->keep2, *v, wb_mul(wb_mul(s->add2, grad), grad));
    const float denominator = wb_fma(wb_sqrt(*v), s->root_correction, s->eps);
    *w = wb_fma(-s->rate, wb_div(*m, denominator), wb_mul(s->decay, *w));
}

#endif
