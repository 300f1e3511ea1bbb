/* verify.c - `waybill verify`: the full check, its verdict as exit code. */
#include "command.h"

#include <inttypes.h>
#include <unistd.h>

/* Rewrites one line of a terminal, now and then. */
static void show_progress(void *ctx, uint64_t done, uint64_t total) {
    int *shown = ctx; /* percent */
    int percent = (int)((double)done / (double)total * 100);
    if (percent == *shown) return;
    *shown = percent;
    fprintf(stderr, "\r%3d%% of %" PRIu64 " records", percent, total);
}

static int run(const cli_command *self, const cli_arguments *arguments) {
    (void)self;
    int shown = -1;
    wb_dump_info info;
    wb_status status =
        wb_dump_verify(arguments->dump, isatty(STDERR_FILENO) ? show_progress : NULL, &shown, &info);
    if (shown >= 0) fprintf(stderr, "\r%40s\r", "");
    if (status != WB_OK) {
        printf("FAILED: %s\n", wb_status_string(status));
        return cli_fail();
    }
    if (info.lost_bytes > 0) {
        printf("CUT: %" PRIu64 " bytes after the last whole record are lost, first in %s\n", info.lost_bytes,
               info.lost_where);
        printf("The %" PRIu64 " records before are whole and can be read as they are.\n", info.records);
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
