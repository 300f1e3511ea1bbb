/* stats_command.c - `waybill stats`: expert load of each MoE layer over valid rows, lengths, finish
 * reasons. */
#include "command.h"
#include "stats/stats.h"

#include <inttypes.h>
#include <stddef.h>

static const cli_option table[] = {
    {.name = "ranks",
     .argument = "R",
     .type = CLI_NUMBER,
     .offset = offsetof(stats_options, ranks),
     .min = 1,
     .max = 65536,
     .default_text = "none",
     .help = "balancedness of each layer on R ranks that have the experts in order, without replicas"},
    {.name = "top",
     .argument = "N",
     .type = CLI_NUMBER,
     .offset = offsetof(stats_options, top),
     .min = 1,
     .max = 64,
     .help = "the N most chosen experts of each layer, at most those that were chosen"},
    {.name = "json",
     .type = CLI_FLAG,
     .offset = offsetof(stats_options, json),
     .help = "one JSON object instead of tables, with the counts of all experts"},
};

static void set_defaults(void *options) {
    ((stats_options *)options)->top = 4;
}

static int print_stats(const cli_command *self, wb_dump *dump, const stats_options *given) {
    const uint32_t E = wb_dump_model(dump)->num_experts;
    stats_options o = *given;
    stats s = {0};
    if (o.top > E) o.top = E;
    if (o.ranks > E)
        return cli_usage_error(self, "--ranks: expected at most the %" PRIu32 " experts, found %" PRIu64, E,
                               o.ranks);
    const int code = stats_collect(dump, &o, &s);
    if (code == CLI_OK) o.json ? stats_print_json(&s) : stats_print_tables(&s);
    wb_owner_close(&s.memory);
    return code;
}

static int run(const cli_command *self, const cli_arguments *arguments) {
    wb_dump *dump = NULL;
    int code = cli_open_dump(arguments->dump, &dump);
    if (code == CLI_OK) code = print_stats(self, dump, arguments->options);
    cli_close_dump(dump);
    return code;
}

const cli_command cli_stats = {
    .name = "stats",
    .summary = "expert load of each layer, lengths, finish reasons",
    .description =
        "Counts the valid rows of every record: per MoE layer the most loaded expert against the "
        "mean, the entropy of the load over log E (1: even), experts never chosen, how many experts have "
        "which load, and how often a row goes to the experts of the row before it; lengths and finish "
        "reasons of the records; how many positions each indexer chose, where that is recorded.",
    .options = table,
    .n_options = sizeof table / sizeof table[0],
    .options_size = sizeof(stats_options),
    .set_defaults = set_defaults,
    .run = run,
};
