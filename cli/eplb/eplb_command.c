/* eplb_command.c - `waybill eplb`: sends the tokens of each step through the placements of the solvers and
 * says what comes of it. Owns: the table of options, and the order of reading, running and reporting. */
#include "eplb/eplb.h"
#include "eplb/eplb_arguments.h"
#include "report/eplb_report.h"

#include <stddef.h>
#ifdef _OPENMP
#include <omp.h>
#endif

/* ---- the table of options -------------------------------------------------------------------- */

#define FIELD(field) offsetof(eplb_arguments, field)
#define SOLVER_NAME(VALUE, name) " " #name ","

static const cli_option table[] = {
    {.name = "ranks",
     .argument = "R",
     .type = CLI_NUMBER,
     .offset = FIELD(ranks),
     .min = 1,
     .max = 65536,
     .required = true,
     .heading = "The ranks",
     .help = "expert parallel ranks"},
    {.name = "slots",
     .argument = "S",
     .type = CLI_NUMBER,
     .offset = FIELD(slots),
     .min = 1,
     .max = 1 << 24,
     .required = true,
     .help = "physical slots a layer of all ranks, at least as many as experts"},
    {.name = "nodes",
     .argument = "N",
     .type = CLI_NUMBER,
     .offset = FIELD(nodes),
     .min = 1,
     .max = 65536,
     .help = "nodes that the ranks are on"},
    {.name = "dead",
     .argument = "R[,R...]",
     .type = CLI_TEXT,
     .offset = FIELD(dead),
     .help = "ranks that have failed"},
    {.name = "micro-batches",
     .argument = "M",
     .type = CLI_NUMBER,
     .offset = FIELD(batches),
     .min = 1,
     .max = 65536,
     .help = "micro-batches of a step; those of a DUMP have about equal numbers of rows"},
    {.name = "step-records",
     .argument = "N",
     .type = CLI_NUMBER,
     .offset = FIELD(step_records),
     .min = 1,
     .max = UINT64_MAX,
     .belongs_to = DUMP_ONLY,
     .default_text = "its steps",
     .heading =
         "The tokens of a DUMP: every valid row, records dealt to micro-batches and ranks in file order",
     .help =
         "records of a step, instead of the dump's own steps: the records finished under one weight version, "
         "or where records have none, those of one file"},
    {.name = "synthetic",
     .argument = "KIND",
     .type = CLI_TEXT,
     .offset = FIELD(synthetic),
     .heading = "Or synthetic tokens",
     .help = "zipf, lognormal, or drift (popularities move from step to step)"},
    {.name = "experts",
     .argument = "E",
     .type = CLI_NUMBER,
     .offset = FIELD(experts),
     .min = 1,
     .max = 65536,
     .belongs_to = SYNTHETIC_ONLY,
     .help = "routed experts a layer"},
    {.name = "layers",
     .argument = "L",
     .type = CLI_NUMBER,
     .offset = FIELD(layers),
     .min = 1,
     .max = 65536,
     .belongs_to = SYNTHETIC_ONLY,
     .help = "MoE layers"},
    {.name = "top-k",
     .argument = "K",
     .type = CLI_NUMBER,
     .offset = FIELD(top_k),
     .min = 1,
     .max = 65536,
     .belongs_to = SYNTHETIC_ONLY,
     .help = "choices of a token"},
    {.name = "tokens",
     .argument = "T",
     .type = CLI_NUMBER,
     .offset = FIELD(tokens),
     .min = 1,
     .max = (uint64_t)1 << 31,
     .belongs_to = SYNTHETIC_ONLY,
     .help = "tokens of a micro-batch, of all ranks"},
    {.name = "steps",
     .argument = "N",
     .type = CLI_NUMBER,
     .offset = FIELD(steps),
     .min = 1,
     .max = 65536,
     .belongs_to = SYNTHETIC_ONLY,
     .help = "steps"},
    {.name = "skew",
     .argument = "X",
     .type = CLI_DECIMAL,
     .offset = FIELD(skew),
     .decimal_max = 1000,
     .belongs_to = SYNTHETIC_ONLY,
     .help = "Zipf's exponent, or the standard deviation of log popularity"},
    {.name = "noise",
     .argument = "X",
     .type = CLI_DECIMAL,
     .offset = FIELD(noise),
     .decimal_max = 1000,
     .belongs_to = SYNTHETIC_ONLY,
     .help = "standard deviation of its noise by micro-batch, and of drift's steps"},
    {.name = "seed",
     .argument = "N",
     .type = CLI_NUMBER,
     .offset = FIELD(seed),
     .max = UINT64_MAX,
     .belongs_to = SYNTHETIC_ONLY,
     .help = "of the random numbers"},
    {.name = "algorithm",
     .argument = "A[,B...]",
     .type = CLI_TEXT,
     .offset = FIELD(algorithm),
     .heading = "Placement and dispatch",
     .help = "any of" WB_EPLB_ALGORITHM_LIST(SOLVER_NAME) " or all, or none"},
    {.name = "dispatch",
     .argument = "POLICY",
     .type = CLI_TEXT,
     .offset = FIELD(dispatch),
     .help = "static, dynamic, quota or fake"},
    {.name = "init",
     .argument = "FILE",
     .type = CLI_INPUT,
     .offset = FIELD(init),
     .default_text = "trivial",
     .help = "the placement to start from: a map or counts as JSON or msgpack, or a dump"},
    {.name = "groups",
     .argument = "G",
     .type = CLI_NUMBER,
     .offset = FIELD(groups),
     .min = 1,
     .max = 65536,
     .help = "deepseek: router groups; hierarchical when N divides them"},
    {.name = "trials",
     .argument = "N",
     .type = CLI_NUMBER,
     .offset = FIELD(trials),
     .max = UINT32_MAX,
     .help =
         "balanced, microbatch: moves tried in the search of a layer; 0: a number that grows with the slots"},
    {.name = "max-changes",
     .argument = "N",
     .type = CLI_NUMBER,
     .offset = FIELD(max_changes),
     .max = UINT32_MAX,
     .help =
         "incremental: slots a layer that may change, beyond those that restore lost experts; 0: no limit"},
    {.name = "target",
     .argument = "X",
     .type = CLI_DECIMAL,
     .offset = FIELD(target),
     .decimal_max = 1,
     .above_zero = true,
     .help = "incremental: balancedness at which a layer is good enough"},
    {.name = "horizon",
     .argument = "N",
     .type = CLI_DECIMAL,
     .offset = FIELD(horizon),
     .decimal_max = 1e18,
     .help = "incremental: passes over which a move is to pay"},
    {.name = "threads",
     .argument = "N",
     .type = CLI_NUMBER,
     .offset = FIELD(threads),
     .max = 65536,
     .help = "of the whole command at a time; 0: as many as there are"},
    {.name = "hidden",
     .argument = "N",
     .type = CLI_NUMBER,
     .offset = FIELD(hidden),
     .min = 1,
     .max = 1 << 20,
     .heading = "The cost model, of which a dump says nothing; the numbers used are printed",
     .help =
         "the model's hidden size; with --expert-width it gives the four numbers below, for bf16 on an H200"},
    {.name = "expert-width",
     .argument = "N",
     .type = CLI_NUMBER,
     .offset = FIELD(expert_width),
     .min = 1,
     .max = 1 << 20,
     .help = "the width of an expert's inner layer"},
    {.name = "token-us",
     .argument = "X",
     .type = CLI_DECIMAL,
     .offset = FIELD(token_us),
     .decimal_max = 1e18,
     .help = "microseconds of a token through an expert"},
    {.name = "expert-us",
     .argument = "X",
     .type = CLI_DECIMAL,
     .offset = FIELD(expert_us),
     .decimal_max = 1e18,
     .help = "microseconds of reading an expert's weights, once a pass"},
    {.name = "token-bytes",
     .argument = "X",
     .type = CLI_DECIMAL,
     .offset = FIELD(token_bytes),
     .decimal_max = 1e18,
     .help = "bytes of a token's hidden state"},
    {.name = "expert-bytes",
     .argument = "X",
     .type = CLI_DECIMAL,
     .offset = FIELD(expert_bytes),
     .decimal_max = 1e18,
     .help = "bytes of an expert"},
    {.name = "node-gbps",
     .argument = "X",
     .type = CLI_DECIMAL,
     .offset = FIELD(node_gbps),
     .decimal_max = 1e9,
     .above_zero = true,
     .help = "GB/s of a rank inside its node"},
    {.name = "network-gbps",
     .argument = "X",
     .type = CLI_DECIMAL,
     .offset = FIELD(network_gbps),
     .decimal_max = 1e9,
     .above_zero = true,
     .help = "GB/s of a rank out of its node"},
    {.name = "json",
     .type = CLI_FLAG,
     .offset = FIELD(json),
     .heading = "Output",
     .help = "one JSON object instead of tables, with every step"},
    {.name = "chart",
     .argument = "FILE",
     .type = CLI_OUTPUT,
     .offset = FIELD(chart),
     .help = "an SVG of tokens by rank, before and after the last algorithm"},
    {.name = "save",
     .argument = "FILE",
     .type = CLI_OUTPUT,
     .offset = FIELD(save),
     .help = "the last placement of the one algorithm; *.json is JSON, else msgpack"},
};

/* What the solvers and the cost model have as defaults comes from the library. */
static void set_defaults(void *options) {
    const wb_eplb_options solving = wb_eplb_options_default();
    const wb_cost_model *cost = &solving.cost;
    *(eplb_arguments *)options = (eplb_arguments){
        .algorithm = "all",
        .dispatch = "quota",
        .nodes = 1,
        .batches = 4,
        .experts = 256,
        .layers = 58,
        .top_k = 8,
        .tokens = 65536,
        .steps = 2,
        .seed = 1,
        .skew = 1,
        .noise = 0.2,
        .groups = solving.n_groups,
        .trials = solving.trials,
        .max_changes = solving.max_changes,
        .threads = solving.threads,
        .target = solving.target,
        .horizon = solving.horizon_steps,
        .hidden = 7168,
        .expert_width = 2048,
        .token_us = cost->seconds_per_token * 1e6,
        .expert_us = cost->seconds_per_expert * 1e6,
        .token_bytes = cost->bytes_per_token,
        .expert_bytes = cost->expert_bytes,
        .node_gbps = cost->node_bytes_per_second * 1e-9,
        .network_gbps = cost->network_bytes_per_second * 1e-9,
    };
}

/* ---- the command ----------------------------------------------------------------------------- */

static wb_status write_files(eplb_run *run, eplb_source *source) {
    const eplb_settings *s = run->settings;
    fflush(stdout); /* the report comes before what --save /dev/stdout writes; cli_end sees a failure */
    if (s->save_path) {
        const wb_status status = wb_placement_save(eplb_result_row(run)->placement, s->save_path);
        if (status != WB_OK) return wb_fail_context(status, "--save %s", s->save_path);
    }
    return s->chart_path ? eplb_draw(run, source) : WB_OK;
}

static int run_source(const cli_command *self, const eplb_settings *settings, eplb_source *source) {
    eplb_run run = {.settings = settings, .source = eplb_source_get_info(source)};
    if (wb_topology_check(&settings->topology, run.source.n_experts) != WB_OK)
        return cli_usage_error(self, "%s", wb_error_message());
    wb_status status = eplb_open_rows(&run);
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

static int run(const cli_command *self, const cli_arguments *arguments) {
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

const cli_command cli_eplb = {
    .name = "eplb",
    .summary = "where experts should live: placements compared on a dump or on synthetic loads",
    .synopsis = "(DUMP | --synthetic KIND) --ranks R --slots S [OPTIONS]",
    .description =
        "Sends the tokens of each step through the placements of the solvers and prints balancedness, "
        "predicted time and what moves, beside the trivial placement (none), ranks in turn whatever "
        "the router chose (fake) and the shortest time that any placement could take (bound).",
    .options = table,
    .n_options = sizeof table / sizeof table[0],
    .options_size = sizeof(eplb_arguments),
    .set_defaults = set_defaults,
    .dump_optional = true,
    .run = run,
};
