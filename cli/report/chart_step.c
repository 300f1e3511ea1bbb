/* chart_step.c - see chart_step.h. */
#include "report/chart_step.h"

#include <math.h>

double chart_round_step(double value) {
    double power = pow(10, floor(log10(value)));
    for (int i = 0; i < 3; i++) {
        static const int steps[] = {1, 2, 5};
        if (steps[i] * power >= value * (1 - 1e-9)) return steps[i] * power;
    }
    return 10 * power;
}
