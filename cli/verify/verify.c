/* verify.c - `waybill verify`: the full check, its verdict as exit code. */
#include "command.h"
#include "verify/verify_model.h"
#include "wb_check.h"
#include "wb_model.h"

#include <inttypes.h>
#include <stddef.h>

typedef struct verify_options {
    bool tokens;
    const char *model;
} verify_options;

static const cli_option table[] = {
    {.name = "tokens",
     .type = CLI_FLAG,
     .offset = offsetof(verify_options, tokens),
     .help = "tokens must have a digest in every record, by which their other copies can be compared"},
    {.name = "model",
     .argument = "DIR",
     .type = CLI_TEXT,
     .offset = offsetof(verify_options, model),
     .help = "the dump must be of the model in this directory, its tokens below the vocabulary, and in "
             "layers that are routed by a table of "
             "the checkpoint, which has to be there, every row must be the table's, in its order; where the "
             "engine does not run the model, a line says that these rows were not compared"},
};

static int failed(const char *of, wb_status status) {
    printf("FAILED: %s%s\n", of, wb_status_string(status));
    return cli_fail();
}

/* A digest that is there was compared when its record was read: what is left to find is one that is not. */
static wb_status check_digests(wb_dump *dump) {
    const uint64_t n = wb_dump_get_info(dump).records;
    uint64_t without = 0, first = 0;
    wb_status status = WB_OK;
    wb_dump_entry entry;
    for (uint64_t i = 0; i < n && status == WB_OK; i++) {
        status = wb_dump_get_entry(dump, i, &entry);
        if (status == WB_OK && !entry.has_digest && without++ == 0) first = i;
    }
    if (status == WB_OK && without > 0) status = wb_dump_get_entry(dump, first, &entry);
    if (status == WB_OK && without > 0)
        status = wb_fail(WB_CORRUPT,
                         "%s: byte %" PRIu64 ": expected a digest of the tokens, found none: %" PRIu64
                         " of %" PRIu64 " records are without",
                         entry.path, entry.offset, without, n);
    return status;
}

/* All that is checked of a record, while it is held: it is read and decoded once. model: NULL for none. */
static wb_status check_record(const char *path, wb_dump *dump, uint64_t i, const verify_model *model) {
    wb_record record;
    WB_TRY(wb_dump_record(dump, i, &record));
    wb_status status = wb_dump_verify_record(dump, i);
    if (status == WB_OK && model) status = verify_model_record(model, path, dump, &record);
    wb_dump_release(dump, i);
    return status;
}

static wb_status check_records(const char *path, wb_dump *dump, const verify_model *model) {
    const uint64_t n = wb_dump_get_info(dump).records;
    cli_progress progress = cli_progress_start();
    wb_status status = WB_OK;
    for (uint64_t i = 0; i < n && status == WB_OK; i++) {
        status = check_record(path, dump, i, model);
        if (status == WB_OK) cli_progress_records(&progress, i + 1, n, 0);
    }
    cli_progress_end(&progress);
    return status;
}

static void say_not_compared(const char *model, uint32_t n_layers) {
    wb_config config;
    printf(
        "NOT COMPARED: rows of %" PRIu32
        " hash-routed layers, whose tables are not found: by the config.json in %s, the engine does not run "
        "the model",
        n_layers, model);
    if (wb_config_load(model, &config) != WB_OK) printf(": %s", wb_error_message());
    printf("\n");
}

static void say_verdict(const verify_options *o, const wb_dump_info *info) {
    printf("OK: %" PRIu64 " records in %" PRIu64 " files, %" PRIu64 " bytes", info->records, info->files,
           info->bytes);
    if (info->files_without_index > 0)
        printf("; %" PRIu64 " files have no index yet (still being written, or the writer ended early)",
               info->files_without_index);
    if (o->tokens) printf("; every record's tokens have their digest");
    if (o->model) printf("; routes of the model in %s", o->model);
    printf("\n");
}

/* model: NULL without --model. */
static wb_status check_dump(const char *path, const verify_options *o, const verify_model *model,
                            wb_dump_info *info_out) {
    wb_dump *dump = NULL;
    WB_TRY(wb_dump_open(path, &dump));
    *info_out = wb_dump_get_info(dump);
    wb_status status = model ? verify_model_match(model, path, dump) : WB_OK;
    if (status == WB_OK) status = check_records(path, dump, model);
    if (status == WB_OK && o->tokens) status = check_digests(dump);
    wb_dump_close(dump);
    return status;
}

static int verify(const char *dump, const verify_options *o, const verify_model *model) {
    wb_dump_info info;
    cli_spooled spooled;
    wb_status status = cli_dump_path(dump, &spooled);
    if (status != WB_OK) return cli_fail();
    status = check_dump(spooled.path, o, model, &info);
    if (status != WB_OK) return failed("", status);
    const uint32_t not_compared = model ? verify_model_not_compared(model) : 0;
    if (not_compared > 0) say_not_compared(o->model, not_compared);
    if (info.files_cut > 0) {
        printf("CUT: the %" PRIu64 " records before the cuts are whole and can be read as they are.\n",
               info.records);
        cli_warn_of_loss(&info);
        return CLI_DATA;
    }
    say_verdict(o, &info);
    return CLI_OK;
}

static int run(const cli_command *self, const cli_arguments *arguments) {
    (void)self;
    const verify_options *o = arguments->options;
    verify_model model = {0};
    /* Before the dump is read, which may take long; and its fault is none of the dump's. */
    const wb_status status = o->model ? verify_model_open(o->model, &model) : WB_OK;
    const int code = status == WB_OK ? verify(arguments->dump, o, o->model ? &model : NULL)
                                     : failed("the model of --model: ", status);
    verify_model_close(&model);
    return code;
}

const cli_command cli_verify = {
    .name = "verify",
    .summary = "check every byte of a dump; the exit code is the verdict",
    .description =
        "Checks structure, checksums and every expert id. Prints OK, or the first fault. Exits with 1 "
        "when anything is damaged or, a file having been cut, lost.",
    .options = table,
    .n_options = sizeof table / sizeof table[0],
    .options_size = sizeof(verify_options),
    .run = run,
};
