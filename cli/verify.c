/* verify.c - `waybill verify`: the full check, its verdict as exit code. */
#include "command.h"

#include <inttypes.h>

static void show(void *ctx, uint64_t done, uint64_t total) {
    cli_progress_records(ctx, done, total, 0);
}

static int run(const cli_command *self, const cli_arguments *arguments) {
    (void)self;
    cli_progress progress = cli_progress_start();
    wb_dump_info info;
    wb_status status = wb_dump_verify(arguments->dump, show, &progress, &info);
    cli_progress_end(&progress);
    if (status != WB_OK) {
        printf("FAILED: %s\n", wb_status_string(status));
        return cli_fail();
    }
    if (info.files_cut > 0) {
        printf("CUT: the %" PRIu64 " records before the cuts are whole and can be read as they are.\n",
               info.records);
        cli_warn_of_loss(&info);
        return CLI_DATA;
    }
    printf("OK: %" PRIu64 " records in %" PRIu64 " files, %" PRIu64 " bytes", info.records, info.files,
           info.bytes);
    if (info.files_without_index > 0)
        printf("; %" PRIu64 " files have no index yet (still being written, or the writer ended early)",
               info.files_without_index);
    printf("\n");
    return CLI_OK;
}

const cli_command cli_verify = {
    .name = "verify",
    .summary = "check every byte of a dump; the exit code is the verdict",
    .description =
        "Checks structure, checksums and every expert id. Prints OK, or the first fault. Exits with 1 "
        "when anything is damaged or, a file having been cut, lost.",
    .run = run,
};
