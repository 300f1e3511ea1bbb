/* eplb_run.c - `waybill eplb`: sends the tokens of each step through the placements of the solvers and says
 * what comes of it. Owns: the order of reading, running and reporting. */
#include "eplb/eplb.h"
#include "report/eplb_report.h"

#ifdef _OPENMP
#include <omp.h>
#endif

static wb_status write_files(eplb_run *run, eplb_source *source) {
    const eplb_settings *s = run->settings;
    fflush(stdout); /* the report comes before what --save /dev/stdout writes; cli_end sees a failure */
    if (s->save_path) {
        const wb_status status =
            wb_placement_save(eplb_result_row(run)->placement, s->save_path, s->save_as, run->source.layers);
        if (status != WB_OK) return wb_fail_context(status, "--save %s", s->save_path);
    }
    return s->chart_path ? eplb_draw(run, source) : WB_OK;
}

static int run_source(const cli_command *self, const eplb_settings *settings, eplb_source *source) {
    eplb_run run = {
        .settings = settings, .source = eplb_source_get_info(source), .counts = eplb_source_counts(source)};
    if (wb_topology_check(&settings->topology, run.source.n_experts) != WB_OK)
        return cli_usage_error(self, "%s", wb_error_message());
    wb_status status = eplb_warn_of_counts(&run);
    if (status == WB_OK) status = eplb_open_rows(&run);
    if (status == WB_OK) status = eplb_run_steps(&run, source);
    if (status == WB_OK) {
        settings->json ? eplb_print_json(&run) : eplb_print_tables(&run);
        status = write_files(&run, source);
    }
    const int code = status == WB_OK ? CLI_OK : cli_fail();
    eplb_close_rows(&run);
    return code;
}

/* For all that the command calls: counting a dump, placements to start from, solvers, simulations. */
static void limit_threads(uint32_t threads) {
#ifdef _OPENMP
    if (threads > 0) omp_set_num_threads((int)threads);
#else
    (void)threads;
#endif
}

int eplb_run_command(const cli_command *self, const cli_arguments *arguments) {
    eplb_settings settings;
    eplb_source *source = NULL;
    int code = eplb_settings_read(self, arguments, &settings);
    if (code != CLI_OK) return code;
    limit_threads(settings.options.threads);
    code = eplb_source_open(&settings, &source) == WB_OK ? run_source(self, &settings, source) : cli_fail();
    eplb_source_close(source);
    eplb_settings_free(&settings);
    return code;
}
