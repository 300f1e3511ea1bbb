/* merge.c - `waybill merge`: the records of several dumps in one file, as they are stored or by another
 * codec. */
#include "command.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stddef.h>
#include <string.h>

typedef struct merge_options {
    const char *codec; /* NULL: as they are stored */
    bool force;
} merge_options;

static const cli_option table[] = {
    {.name = "codec",
     .argument = "CODEC",
     .type = CLI_TEXT,
     .offset = offsetof(merge_options, codec),
     .help = "store rows as raw, zstd or packed, which is the smallest for up to 256 experts",
     .default_text = "as they are stored"},
    {.name = "force",
     .type = CLI_FLAG,
     .offset = offsetof(merge_options, force),
     .help = "replace OUT if there is a file"},
};

static const cli_operand operands[] = {{"OUT", CLI_OUTPUT}, {"DUMP", CLI_INPUTS}};

typedef struct merge {
    cli_output out;
    bool encodes; /* by `codec` */
    wb_codec codec;
    cli_progress progress;
    uint64_t records, tokens;
    uint32_t indexer_rate; /* of the first dump, and so of the file */
} merge;

/* Whether the message is of the dump, or of a file of it. */
static bool begins_with(const char *message, const char *path) {
    const size_t n = strlen(path);
    return strncmp(message, path, n) == 0 && (message[n] == ':' || message[n] == '/');
}

static wb_status append(const merge *m, wb_dump *dump, uint64_t i) {
    wb_record record;
    if (!m->encodes) return wb_dump_append_stored(m->out.writer, dump, i);
    WB_TRY(wb_dump_record(dump, i, &record));
    wb_status status = wb_dump_append(m->out.writer, &record);
    wb_dump_release(dump, i);
    return status;
}

static int append_all(merge *m, const char *path, wb_dump *dump) {
    const uint64_t n = wb_dump_get_info(dump).records;
    for (uint64_t i = 0; i < n; i++) {
        wb_status status = append(m, dump, i);
        /* What is wrong with the dump is said with its file; what the output has already is not. */
        if (status != WB_OK && !begins_with(wb_error_message(), path))
            (void)wb_fail_context(status, "%s", path);
        if (status != WB_OK) return cli_fail();
        m->records++;
        if (cli_progress_due(&m->progress))
            cli_progress_show(&m->progress, (double)(i + 1), (double)n,
                              "%" PRIu64 " of %" PRIu64 " records of %s", i + 1, n, path);
    }
    return CLI_OK;
}

/* Records of a dump that does not say the rate of its indexers were not held against it, and would be in a
 * file that does not say it either; behind a dump that says it they are. */
static int check_rate(const merge *m, const char *path, const wb_route_model *model) {
    if (m->indexer_rate > 0 || model->indexer_rate == 0) return CLI_OK;
    (void)wb_fail(WB_INVALID_ARGUMENT,
                  "%s: the rate of its indexers is %" PRIu32
                  ", which the first dump does not say: name this one first",
                  path, model->indexer_rate);
    return cli_fail();
}

/* The first dump's model is that of the file. */
static int add_dump(merge *m, const char *path, const merge_options *o, const char *out) {
    wb_dump *dump = NULL;
    int code = cli_open_dump(path, &dump);
    if (code == CLI_OK && !m->out.writer) {
        m->indexer_rate = wb_dump_model(dump)->indexer_rate;
        code = cli_output_open(out, o->force, "merge", m->codec, wb_dump_model(dump), &m->out);
    }
    if (code == CLI_OK) code = append_all(m, path, dump);
    if (code == CLI_OK) code = check_rate(m, path, wb_dump_model(dump));
    cli_close_dump(dump);
    return code;
}

static int find_codec(const cli_command *self, const char *name, merge *m) {
    if (!name) return CLI_OK;
    for (wb_codec codec = WB_CODEC_RAW; wb_codec_name(codec); codec++) {
        if (strcmp(wb_codec_name(codec), name) != 0) continue;
        m->codec = codec;
        m->encodes = true;
        return CLI_OK;
    }
    return cli_usage_error(self, "--codec: expected raw, zstd or packed, found %s", name);
}

static int run(const cli_command *self, const cli_arguments *arguments) {
    const merge_options *options = arguments->options;
    merge m = {.progress = cli_progress_start()};
    const cli_list *words = &arguments->operands;
    int code = find_codec(self, options->codec, &m);
    for (uint32_t i = 1; i < words->n && code == CLI_OK; i++)
        code = add_dump(&m, words->items[i], options, words->items[0]);
    cli_progress_end(&m.progress);
    if (code == CLI_OK) code = cli_output_commit(&m.out);
    cli_output_discard(&m.out);
    return code;
}

const cli_command cli_merge = {
    .name = "merge",
    .summary = "records of several dumps in one file",
    .description =
        "Writes the records of all DUMPs, in the order given, into the file OUT, which appears when it is "
        "whole. Records are copied as they are stored, with codecs and prompts that are stored once, or, "
        "with --codec, encoded anew. "
        "Refuses dumps of different models, and a request id that comes twice. OUT may be - for standard "
        "output.",
    .options = table,
    .n_options = sizeof table / sizeof table[0],
    .options_size = sizeof(merge_options),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .run = run,
};
