/* chart_step.h - where the lines of an axis stand. */
#ifndef WB_CLI_CHART_STEP_H
#define WB_CLI_CHART_STEP_H

/* 1, 2 or 5 times a power of ten, at least `value`, which is above 0 */
double chart_round_step(double value);

#endif
