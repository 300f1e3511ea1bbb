/* eplb_arguments.h - the command line of `waybill eplb` as it was read, before its parts are held against
 * each other. */
#ifndef WB_CLI_EPLB_ARGUMENTS_H
#define WB_CLI_EPLB_ARGUMENTS_H

#include "command.h"

/* Which source of tokens an option is of. */
enum { ANY_SOURCE, DUMP_ONLY, SYNTHETIC_ONLY, LOADS_ONLY };

/* In the units that --help names; texts NULL: absent. */
typedef struct eplb_arguments {
    const char *synthetic, *algorithm, *dispatch, *dead, *init, *chart, *save;
    const char *model, *moe_layers, *save_as;
    uint64_t ranks, slots, nodes, batches, step_records;
    uint64_t experts, layers, top_k, tokens, steps, seed;
    uint64_t groups, trials, max_changes, threads;
    uint64_t hidden, expert_width;
    double skew, noise, target, horizon;
    double token_us, expert_us, token_bytes, expert_bytes, node_gbps, network_gbps;
    bool json;
    cli_list loads;
} eplb_arguments;

#endif
