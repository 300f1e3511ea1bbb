/* eplb_rows.c - the rows of `waybill eplb`: without balancing, each solver, ranks in turn; and the placement
 * that they start from. */
#include "eplb/eplb.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static wb_status add_row(eplb_run *run, eplb_row row, const wb_placement *first) {
    WB_TRY(WB_NEW(row.steps, run->source.n_steps, "eplb results"));
    run->rows[run->n_rows++] = row; /* closed with the others, whatever comes */
    return wb_placement_clone(first, &run->rows[run->n_rows - 1].placement);
}

/* What an earlier rollout says: a .wbr file or a directory of them. */
static wb_status open_from_dump(const char *path, const wb_topology *topology, const eplb_source_info *info,
                                const wb_eplb_options *options, wb_placement **first_out) {
    wb_dump *dump = NULL;
    wb_status status = wb_dump_open(path, &dump);
    if (status != WB_OK) return status;
    const wb_route_model *m = wb_dump_model(dump);
    if (m->n_moe_layers != info->n_layers || wb_route_weighted(m) != info->n_experts)
        status =
            wb_fail(WB_MISMATCH,
                    "%s: %" PRIu32 " MoE layers of %" PRIu32 " experts, expected %" PRIu32 " of %" PRIu32,
                    path, m->n_moe_layers, wb_route_weighted(m), info->n_layers, info->n_experts);
    if (status == WB_OK) status = wb_placement_from_dump(dump, topology, options, first_out);
    cli_close_dump(dump);
    return status;
}

static bool is_dump(const char *path) {
    struct stat about;
    size_t length = strlen(path);
    return (length > 4 && strcmp(path + length - 4, ".wbr") == 0) ||
           (stat(path, &about) == 0 && S_ISDIR(about.st_mode));
}

/* The placement to start from, of the time before ranks failed. */
static wb_status open_first(eplb_run *run, wb_placement **first_out) {
    const eplb_settings *s = run->settings;
    const eplb_source_info *info = &run->source;
    wb_topology before = s->topology;
    wb_eplb_options options = s->options;
    before.dead = NULL;
    options.algorithm = s->init_algorithm;
    if (!s->init_path) return wb_placement_open(&before, info->n_layers, info->n_experts, first_out);
    if (is_dump(s->init_path)) {
        run->init_layout = "dump";
        run->init_solved = true;
        return open_from_dump(s->init_path, &before, info, &options, first_out);
    }
    const wb_status status = wb_placement_read(s->init_path, &before, info->n_layers, info->n_experts,
                                               info->layers, &options, &run->init_layout, first_out);
    run->init_solved = status == WB_OK && strcmp(run->init_layout, "logical_count") == 0;
    return status == WB_OK ? WB_OK : wb_fail_context(status, "--init");
}

/* The same after ranks have failed: only experts that they alone had are placed anew. */
static wb_status repair_first(const eplb_settings *s, const eplb_source_info *info, const wb_placement *first,
                              wb_placement **none_out) {
    if (!s->topology.dead) return wb_placement_clone(first, none_out);
    wb_eplb_options options = wb_eplb_options_default();
    options.algorithm = WB_EPLB_INCREMENTAL;
    options.current = first;
    options.horizon_steps = 0;
    double *no_loads = NULL;
    WB_TRY(WB_NEW(no_loads, (size_t)info->n_layers * info->n_experts, "eplb loads"));
    const wb_status status =
        wb_eplb_solve(&s->topology, info->n_layers, info->n_experts, 1, no_loads, &options, none_out);
    free(no_loads);
    return status;
}

wb_status eplb_open_rows(eplb_run *run) {
    const eplb_settings *s = run->settings;
    const eplb_source_info *info = &run->source;
    wb_placement *first = NULL, *none = NULL;
    wb_status status = open_first(run, &first);
    if (status == WB_OK) status = repair_first(s, info, first, &none);
    if (status == WB_OK) status = add_row(run, (eplb_row){.name = "none", .dispatch = s->dispatch}, none);
    for (uint32_t i = 0; status == WB_OK && i < s->n_solvers; i++)
        status = add_row(run,
                         (eplb_row){.name = wb_eplb_algorithm_name(s->solvers[i]),
                                    .solves = true,
                                    .algorithm = s->solvers[i],
                                    .dispatch = s->dispatch},
                         first);
    if (status == WB_OK)
        status = add_row(run, (eplb_row){.name = "fake", .dispatch = WB_DISPATCH_FAKE}, none);
    if (status == WB_OK) run->topology = wb_placement_topology(run->rows[0].placement);
    wb_placement_close(none);
    wb_placement_close(first);
    return status;
}

void eplb_close_rows(eplb_run *run) {
    for (uint32_t i = 0; i < run->n_rows; i++) {
        wb_placement_close(run->rows[i].placement);
        free(run->rows[i].steps);
        free(run->rows[i].refused);
    }
}

eplb_row *eplb_result_row(eplb_run *run) {
    eplb_row *found = &run->rows[0];
    for (uint32_t i = 1; i < run->n_rows; i++)
        if (run->rows[i].solves && !run->rows[i].refused) found = &run->rows[i];
    return found;
}
