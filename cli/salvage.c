/* salvage.c - `waybill salvage`: what is whole of a cut or damaged dump, and what is lost by name. */
#include "command.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stddef.h>
#include <string.h>

typedef struct salvage_options {
    bool force;
} salvage_options;

static const cli_option table[] = {
    {.name = "force",
     .type = CLI_FLAG,
     .offset = offsetof(salvage_options, force),
     .help = "replace OUT if there is a file"},
};

static const cli_operand operands[] = {{"DUMP", CLI_INPUT}, {"OUT", CLI_OUTPUT}};

typedef struct losses {
    uint64_t stretches, bytes, shortened;
} losses;

/* Reasons of the reader begin with the file, which has been named. */
static const char *without_path(const char *why, const char *path) {
    const size_t length = strlen(path);
    return strncmp(why, path, length) == 0 && strncmp(why + length, ": ", 2) == 0 ? why + length + 2 : why;
}

/* To standard error: OUT may be standard output. */
static void say_loss(void *ctx, const wb_dump_loss *loss) {
    losses *l = ctx;
    const char *why = without_path(loss->why, loss->path);
    if (loss->bytes == 0 && loss->rid) {
        l->shortened++;
        fprintf(stderr, "shortened  %s: byte %" PRIu64 ": record %s is saved without its first rows: %s\n",
                loss->path, loss->offset, loss->rid, why);
        return;
    }
    l->stretches++;
    l->bytes += loss->bytes;
    fprintf(stderr, "lost  %s: ", loss->path);
    if (loss->bytes > 0)
        fprintf(stderr, "bytes %" PRIu64 "..%" PRIu64 ": ", loss->offset, loss->offset + loss->bytes - 1);
    if (loss->rid) fprintf(stderr, "record %s: ", loss->rid);
    fprintf(stderr, "%s\n", why);
}

static int save(wb_dump *dump, const char *path, bool force) {
    cli_output out = {0};
    cli_progress progress = cli_progress_start();
    const uint64_t n = wb_dump_get_info(dump).records;
    int code = cli_output_open(path, force, "salvage", WB_CODEC_RAW, wb_dump_model(dump), &out);
    for (uint64_t i = 0; i < n && code == CLI_OK; i++) {
        if (wb_dump_append_stored(out.writer, dump, i) != WB_OK) code = cli_fail();
        cli_progress_records(&progress, i + 1, n, 0);
    }
    cli_progress_end(&progress);
    if (code == CLI_OK) code = cli_output_commit(&out);
    cli_output_discard(&out);
    return code;
}

static int run(const cli_command *self, const cli_arguments *arguments) {
    (void)self;
    const salvage_options *o = arguments->options;
    losses lost = {0};
    cli_spooled spooled;
    wb_dump *dump = NULL;
    wb_status status = cli_dump_path(arguments->dump, &spooled);
    if (status == WB_OK) status = wb_dump_salvage(spooled.path, say_loss, &lost, &dump);
    int code = status == WB_OK ? CLI_OK : cli_fail();
    if (code == CLI_OK) code = save(dump, arguments->operands.items[1], o->force);
    if (code == CLI_OK) {
        fprintf(stderr, "saved %" PRIu64 " records", wb_dump_get_info(dump).records);
        if (lost.stretches > 0)
            fprintf(stderr, ", lost %" PRIu64 " bytes in %" PRIu64 " places", lost.bytes, lost.stretches);
        if (lost.shortened > 0)
            fprintf(stderr, "; %" PRIu64 " records are without their first rows", lost.shortened);
        fprintf(stderr, "\n");
    }
    wb_dump_close(dump);
    return code;
}

const cli_command cli_salvage = {
    .name = "salvage",
    .summary = "what is whole of a cut or damaged dump",
    .description =
        "Writes every record of DUMP that verify finds nothing wrong with into the file OUT, also those "
        "that lie after damage, which a dump is refused for. Standard error names what is lost: file, "
        "bytes, request id where it can be read, and why. A record whose prompt was stored with a record "
        "that is lost is saved without these rows, which is said too. OUT may be - for standard output.",
    .options = table,
    .n_options = sizeof table / sizeof table[0],
    .options_size = sizeof(salvage_options),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .run = run,
};
