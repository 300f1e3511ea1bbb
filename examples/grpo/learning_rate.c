/* learning_rate.c - the learning rate of a step: a rise over --lr-warmup, then constant, or a fall to
 * --lr-end that is straight or half a cosine. A pure function of the options and the step, so that a run that
 * resumes has the rates of one that was never interrupted. */
#include "grpo.h"

#include <math.h>

double learning_rate(const options *o, uint64_t step) {
    const double pi = 3.14159265358979323846;
    const double at = (double)step, warmup = (double)o->lr_warmup, steps = (double)o->lr_steps;
    if (at < warmup) return o->lr * (at + 1) / warmup;
    if (o->schedule == LR_CONSTANT) return o->lr;
    const double part = steps > warmup ? fmin((at - warmup) / (steps - warmup), 1) : 1;
    const double left = o->schedule == LR_LINEAR ? 1 - part : 0.5 + 0.5 * cos(pi * part);
    return o->lr * (o->lr_end + (1 - o->lr_end) * left);
}
