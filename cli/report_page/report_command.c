/* report_command.c - `waybill report`: what a dump shows, as one page. Owns which sections there are. */
#include "command.h"
#include "report_page/page_balance.h"
#include "report_page/page_drift.h"
#include "report_page/page_indexer.h"
#include "report_page/page_load.h"
#include "report_page/page_metrics.h"
#include "report_page/page_mismatch.h"
#include "report_page/page_text.h"
#include "wb_check.h"
#include "wb_file.h"
#include "wb_text.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct report_options {
    const char *output, *against, *metrics;
    uint64_t max_ranks;
    bool force;
} report_options;

static const cli_option table[] = {
    {.name = "output",
     .letter = 'o',
     .argument = "FILE",
     .type = CLI_OUTPUT,
     .offset = offsetof(report_options, output),
     .required = true,
     .help = "the page"},
    {.name = "against",
     .argument = "FILE",
     .type = CLI_INPUT,
     .offset = offsetof(report_options, against),
     .default_text = "none",
     .help = "a second dump of the same requests: how its routes differ, by layer and by position"},
    {.name = "metrics",
     .argument = "FILE",
     .type = CLI_INPUT,
     .offset = offsetof(report_options, metrics),
     .default_text = "the metrics.jsonl beside DUMP or in it, if there is one",
     .help = "the metrics of the training run that wrote the dump"},
    {.name = "max-ranks",
     .argument = "R",
     .type = CLI_NUMBER,
     .offset = offsetof(report_options, max_ranks),
     .min = 2,
     .max = 1024,
     .help = "balancedness for 2, 4, 8 .. ranks, up to R and to the number of experts"},
    {.name = "force",
     .type = CLI_FLAG,
     .offset = offsetof(report_options, force),
     .help = "replace FILE if there is one"},
};

static void set_defaults(void *options) {
    ((report_options *)options)->max_ranks = 64;
}

/* What the page shows. */
typedef struct report {
    const report_options *options;
    const char *dump_path;
    wb_dump *dump, *against;
    stats_options stats_options;
    stats stats;
    diff diff;
    balance balance;
    drift drift;
    char *metrics_path; /* NULL: there are none */
    metrics metrics;
} report;

/* ---- metrics ------------------------------------------------------------------------------------- */

/* Reads *path and keeps it; a path where nothing is is freed. */
static wb_status try_metrics(report *r, char *path) {
    const wb_status status = metrics_read(path, &r->metrics);
    if (status == WB_OK) {
        r->metrics_path = path;
        return WB_OK;
    }
    free(path);
    return status;
}

/* A run writes OUT/metrics.jsonl and OUT/dump: of a directory it lies in it or in the one above, of a file in
 * the file's. */
static wb_status find_metrics(report *r) {
    struct stat info;
    char *path = NULL;
    const char *dump = r->dump_path, *slash = strrchr(dump, '/');
    if (r->options->metrics) {
        WB_TRY(wb_text_format(&path, "%s", r->options->metrics));
        return try_metrics(r, path);
    }
    if (stat(dump, &info) == 0 && S_ISDIR(info.st_mode)) {
        WB_TRY(wb_text_format(&path, "%s/metrics.jsonl", dump));
        const wb_status status = try_metrics(r, path);
        if (status != WB_NOT_FOUND) return status;
        WB_TRY(wb_text_format(&path, "%s/../metrics.jsonl", dump));
    } else {
        WB_TRY(wb_text_format(&path, "%.*smetrics.jsonl", slash ? (int)(slash + 1 - dump) : 0, dump));
    }
    const wb_status status = try_metrics(r, path);
    return status == WB_NOT_FOUND ? WB_OK : status;
}

/* ---- the page ------------------------------------------------------------------------------------ */

static void print_link(FILE *out, bool there, const char *id, const char *title) {
    if (there) fprintf(out, "<li><a href=\"#%s\">%s</a></li>\n", id, title);
}

static void print_contents(FILE *out, const report *r) {
    fputs("<nav aria-label=\"Sections\"><ul>\n", out);
    print_link(out, true, "load", "Load of the experts");
    print_link(out, r->balance.n_points > 0, "balance", "Balancedness");
    print_link(out, r->against, "mismatch", "Mismatch");
    print_link(out, r->stats.with_indexer > 0, "indexers", "What indexers chose");
    print_link(out, r->drift.n > 0, "drift", "Drift");
    print_link(out, r->metrics.n > 0, "training", "Training");
    fputs("</ul></nav>\n<main>\n", out);
}

static wb_status print_page(FILE *out, const report *r) {
    page_begin(out, r->dump_path);
    print_contents(out, r);
    page_summary(out, &r->stats);
    page_load(out, &r->stats);
    if (r->balance.n_points > 0) page_balance(out, &r->balance);
    if (r->against) WB_TRY(page_mismatch(out, &r->diff, r->options->against));
    if (r->stats.with_indexer > 0) page_indexer(out, &r->stats, r->against ? &r->diff : NULL);
    if (r->drift.n > 0) page_drift(out, &r->drift);
    if (r->metrics.n > 0) page_metrics(out, &r->metrics, r->metrics_path);
    page_end(out);
    return WB_OK;
}

static wb_status write_page(const report *r) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (!out) return wb_fail(WB_OUT_OF_MEMORY, "no memory for the page");
    wb_status status = print_page(out, r);
    const bool whole = !ferror(out);
    if ((fclose(out) != 0 || !whole) && status == WB_OK)
        status = wb_fail(WB_OUT_OF_MEMORY, "no memory for the page");
    if (status == WB_OK) status = wb_file_replace(r->options->output, text, bytes);
    free(text);
    return status;
}

/* ---- the command --------------------------------------------------------------------------------- */

/* What is quickly refused comes before what takes long. */
static wb_status look_first(report *r) {
    bool direct = false;
    WB_TRY(cli_output_look(r->options->output, r->options->force, &direct));
    return find_metrics(r);
}

static int collect(report *r) {
    const uint32_t E = wb_dump_model(r->dump)->num_experts;
    r->stats_options.top = E < 4 ? E : 4;
    int code = stats_collect(r->dump, &r->stats_options, &r->stats);
    if (code == CLI_OK && r->against) code = diff_compare(r->dump, r->against, &r->diff);
    if (code == CLI_OK && r->stats.rows > 0) code = drift_collect(r->dump, &r->drift);
    if (code == CLI_OK && r->stats.rows > 0)
        code = balance_collect(&r->stats, r->options->max_ranks, &r->balance);
    return code;
}

static int run(const cli_command *self, const cli_arguments *arguments) {
    (void)self;
    report r = {.options = arguments->options, .dump_path = arguments->dump};
    int code = look_first(&r) == WB_OK ? CLI_OK : cli_fail();
    if (code == CLI_OK) code = cli_open_dump(arguments->dump, &r.dump);
    if (code == CLI_OK && r.options->against) code = cli_open_dump(r.options->against, &r.against);
    if (code == CLI_OK) code = collect(&r);
    if (code == CLI_OK && write_page(&r) != WB_OK) code = cli_fail();
    diff_close(&r.diff);
    wb_owner_close(&r.drift.memory);
    wb_owner_close(&r.stats.memory);
    metrics_close(&r.metrics);
    free(r.metrics_path);
    cli_close_dump(r.against);
    cli_close_dump(r.dump);
    return code;
}

const cli_command cli_report = {
    .name = "report",
    .summary = "what a dump shows, as one page for a browser",
    .description =
        "Writes one HTML page that needs nothing else, no script and no network: the load of each expert in "
        "each layer, balancedness over numbers of ranks without a placement and after each solver; with "
        "--against how the routes of a second dump differ, by layer and position; what indexers "
        "chose, where it is recorded; how the load drifts over the weight versions of the dump; reward and "
        "KL of the training run, where its metrics.jsonl lies beside "
        "the dump. Each drawing has its numbers as a table, and all of it can be reached with the keyboard. "
        "The numbers are those of stats, diff and eplb.",
    .synopsis = "DUMP -o FILE [--against FILE] [--metrics FILE] [--max-ranks R] [--force]",
    .options = table,
    .n_options = sizeof table / sizeof table[0],
    .options_size = sizeof(report_options),
    .set_defaults = set_defaults,
    .run = run,
};
