/* eplb.h - what the files of `waybill eplb` share: the settings of a run, the traffic it replays, what it
 * found. Refuses: other subcommands. */
#ifndef WB_CLI_EPLB_H
#define WB_CLI_EPLB_H

#include "command.h"
#include "wb_eplb.h"

/* ---- the command line (eplb_settings.c) ------------------------------------------------------ */

enum { EPLB_MAX_SOLVERS = WB_EPLB_N_ALGORITHMS };

typedef struct eplb_settings {
    const char *dump;       /* NULL: the loads, or synthetic */
    const cli_list *loads;  /* files; NULL: not from files */
    wb_moe_layers moe;      /* of the loads' model; no layers: not known. Its array is the next */
    uint32_t *moe_layers;   /* [moe.n_moe] or NULL */
    uint32_t model_experts; /* E of --model; 0: not given */
    wb_synthetic synthetic;
    uint32_t n_experts, n_layers;  /* of synthetic loads */
    uint32_t top_k;                /* of synthetic loads and of --model; else 0 */
    uint32_t n_steps;              /* of synthetic loads */
    uint32_t n_batches;            /* M micro-batches of a step */
    uint64_t step_records;         /* records of a step; 0: the dump's own steps */
    uint32_t hidden, expert_width; /* of the cost model's expert */
    bool sizes_given;              /* else they are assumed */
    wb_topology topology;          /* its `dead` is the array below, or NULL */
    uint8_t *dead;                 /* [R] or NULL */
    wb_dispatch_policy dispatch;
    uint32_t n_solvers;
    wb_eplb_algorithm solvers[EPLB_MAX_SOLVERS];
    wb_eplb_options options;          /* of the solvers; its cost model is the run's */
    wb_eplb_algorithm init_algorithm; /* of counts to start from */
    const char *init_path, *save_path, *chart_path;
    wb_map_layout save_as;
    bool json;
} eplb_settings;

/* What the command line asks for. CLI_OK or the exit code, and then the fault has been said. */
int eplb_settings_read(const cli_command *self, const cli_arguments *arguments, eplb_settings *settings_out);
void eplb_settings_free(eplb_settings *settings);

/* ---- layers (eplb_layers.c) -------------------------------------------------------------------- */

/* The MoE layers of --moe-layers or --model, and what else a model says. CLI_OK or the exit code. */
int eplb_read_layers(const cli_command *self, const cli_arguments *arguments, eplb_settings *settings);

/* ---- the run (eplb_run.c) -------------------------------------------------------------------- */

/* Reads the settings, runs all rows in all steps, and prints and writes what was asked for. */
int eplb_run_command(const cli_command *self, const cli_arguments *arguments);

/* ---- traffic (eplb_source.c) ----------------------------------------------------------------- */

/* Steps of micro-batches, from a dump's records, from files of counts or from a seed; of records and of a
 * seed one step at a time is in memory. */
typedef struct eplb_source eplb_source;

typedef struct eplb_source_info {
    const char *name; /* of the model, or the kind of synthetic loads; owner: the source */
    uint32_t n_layers, n_experts, n_steps, n_batches;
    uint32_t n_weightless;  /* experts beside those, which have no weights */
    uint32_t top_k;         /* 0: not known */
    const uint32_t *layers; /* [L] the hidden layer of each MoE layer; NULL: not known; owner: the source */
    double pass_tokens;     /* of loads: choices of a pass in one layer, a mean over those that have any */
    uint32_t n_passes;      /* of loads */
    bool shares;            /* loads are parts of a token: 1 is taken for a fixed number of choices */
    uint64_t records, rows; /* of a dump, taken so far */
    uint64_t skipped;       /* records of a dump that are in no step, because they have no valid row */
    const char *steps_by;   /* of a dump, what makes a step (eplb_dump_steps.h); owner: the source */
} eplb_source_info;

wb_status eplb_source_open(const eplb_settings *settings, eplb_source **source_out);
void eplb_source_close(eplb_source *source); /* NULL is a no-op */
eplb_source_info eplb_source_get_info(const eplb_source *source);
/* Steps are taken in order, each once; those of loads also again. The topology holds the experts: the caller
 * has checked. `progress` as in wb_dump_counts_open. */
wb_status eplb_source_take_step(eplb_source *source, uint32_t step,
                                void (*progress)(void *ctx, uint64_t done, uint64_t total),
                                void *progress_ctx);
/* [M][L][E] of the step taken; owner: the source, until the next step. */
const double *eplb_source_loads(const eplb_source *source);
/* Of the step taken; its ctx is the source. */
wb_traffic eplb_source_traffic(eplb_source *source);
/* How many counts of the step's loads a token of its traffic stands for: 1 unless they are more than a
 * dispatch takes. */
double eplb_source_scale(const eplb_source *source);
/* Of loads; NULL for other sources. Owner: the source. */
const wb_counts *eplb_source_counts(const eplb_source *source);

/* ---- what was found -------------------------------------------------------------------------- */

/* Of one row in one step, or the means over steps. NAN: there is none. */
typedef struct eplb_figures {
    double balancedness; /* the placement made from the step's own loads */
    double stale;        /* the placement of the step before, on this step's tokens */
    double balancedness_time, min_layer;
    double max_over_mean, max_layer; /* of loads alone: max / mean, and the worst layer's */
    double seconds, bound_seconds, transfer_node_bytes, transfer_network_bytes;
    double changed_slots, local_bytes, node_bytes, network_bytes, reload_bytes, move_seconds;
    double solve_seconds;
} eplb_figures;

typedef struct eplb_row {
    const char *name;
    bool solves; /* else the row keeps the placement it starts with */
    wb_eplb_algorithm algorithm;
    wb_dispatch_policy dispatch;
    wb_placement *placement; /* the latest */
    eplb_figures *steps;     /* [n_steps] */
    char *refused;           /* why the solver does not take the shape, or NULL */
} eplb_row;

enum { EPLB_MAX_ROWS = EPLB_MAX_SOLVERS + 2 }; /* and: none, fake */

typedef struct eplb_run {
    const eplb_settings *settings;
    const wb_topology *topology; /* with all arrays */
    eplb_source_info source;
    const wb_counts *counts; /* of loads, or NULL */
    wb_counts_run one_rank;  /* of loads: experts that have nearly all counts; no layers: none have */
    const char *init_layout; /* what --init is, a static string; NULL without */
    bool init_solved;        /* counts or a dump, by settings->init_algorithm */
    uint32_t n_rows;
    eplb_row rows[EPLB_MAX_ROWS]; /* none, the solvers in the order asked for, fake */
} eplb_run;

/* ---- rows and steps (eplb_rows.c, eplb_steps.c, eplb_drawing.c) ------------------------------ */

/* The rows of a run, each with the placement to start from. On failure too they are to be closed. */
wb_status eplb_open_rows(eplb_run *run);
void eplb_close_rows(eplb_run *run);

/* The row whose placement is saved and drawn: the last solver that took the shape; none without solvers. */
eplb_row *eplb_result_row(eplb_run *run);

/* Solves and simulates every row in every step that has tokens; the figures of the others are NAN. Afterwards
 * the last step with tokens is the one taken. */
wb_status eplb_run_steps(eplb_run *run, eplb_source *source);
bool eplb_any_load(const double *loads, size_t n); /* one of them is above 0 */

/* Says on standard error which layers' counts lie in one rank's experts (rule 33): of this run's ranks, or of
 * those of the engine that counted, for which it sets run->one_rank; and that counts are shares. */
wb_status eplb_warn_of_counts(eplb_run *run);

/* The chart of the last step with tokens: all layers, and the one that is worst without balancing. */
wb_status eplb_draw(eplb_run *run, eplb_source *source);

#endif
