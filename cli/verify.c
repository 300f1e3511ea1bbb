/* verify.c - `waybill verify`: the full check, its verdict as exit code. */
#include "cli.h"

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

int cli_verify(const cli_command *self, int argc, char **argv) {
    const cli_option options[] = {{0}};
    const char *path = NULL;
    int code, shown = -1;
    if (!cli_parse(self, argc, argv, options, &path, &code)) return code;
    wb_dump_info info;
    wb_status status = wb_dump_verify(path, isatty(STDERR_FILENO) ? show_progress : NULL, &shown, &info);
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
