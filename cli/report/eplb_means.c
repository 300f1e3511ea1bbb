/* eplb_means.c - see eplb_report.h. */
#include "report/eplb_report.h"

#include <math.h>
#include <string.h>

eplb_figures eplb_mean_figures(const eplb_run *run, const eplb_row *row) {
    enum { N = sizeof(eplb_figures) / sizeof(double) };
    double sums[N] = {0};
    uint32_t n[N] = {0};
    for (uint32_t s = 0; s < run->source.n_steps; s++) {
        double values[N];
        memcpy(values, &row->steps[s], sizeof values);
        for (int i = 0; i < N; i++) {
            if (isnan(values[i])) continue;
            sums[i] += values[i];
            n[i]++;
        }
    }
    for (int i = 0; i < N; i++) sums[i] = n[i] ? sums[i] / n[i] : NAN;
    eplb_figures mean;
    memcpy(&mean, sums, sizeof mean);
    return mean;
}

bool eplb_pass_has_counts(const eplb_run *run, uint32_t pass) {
    const wb_counts_info info = wb_counts_get_info(run->counts);
    const size_t cells = (size_t)info.n_layers * info.n_experts;
    return eplb_any_load(wb_counts_loads(run->counts) + pass * cells, cells);
}

double eplb_ratio_to_bound(const eplb_figures *f) {
    if (isnan(f->bound_seconds)) return NAN; /* a step without tokens */
    return f->bound_seconds > 0 ? f->seconds / f->bound_seconds : 1;
}

double eplb_moved_bytes(const eplb_figures *f) {
    return f->local_bytes + f->node_bytes + f->network_bytes + f->reload_bytes;
}

double eplb_tokens_per_slot(const eplb_run *run) {
    const eplb_source_info *i = &run->source;
    const double passes = (double)i->n_steps * i->n_batches;
    const double tokens = run->counts           ? i->pass_tokens
                          : run->settings->dump ? (double)i->rows * i->top_k / passes
                                                : (double)run->settings->synthetic.tokens;
    return tokens / run->topology->n_slots;
}
