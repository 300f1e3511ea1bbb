/* command_end.c - how a subcommand ends: errors, and output that cannot be written; see command.h. */
#include "command.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

int cli_fail(void) {
    fflush(stdout); /* what was found before the fault, before it */
    fprintf(stderr, "waybill: %s\n", wb_error_message());
    return CLI_DATA;
}

int cli_open_dump(const char *path, wb_dump **dump_out) {
    return wb_dump_open(path, dump_out) == WB_OK ? CLI_OK : cli_fail();
}

void cli_warn_of_loss(const wb_dump_info *info) {
    if (info->files_cut == 0) return;
    fflush(stdout);
    fprintf(stderr,
            "waybill: %" PRIu64 " of %" PRIu64 " files cut: %" PRIu64
            " bytes after the last whole record are lost, first in %s\n",
            info->files_cut, info->files, info->lost_bytes, info->lost_where);
}

void cli_close_dump(wb_dump *dump) {
    if (!dump) return;
    const wb_dump_info info = wb_dump_get_info(dump);
    cli_warn_of_loss(&info);
    wb_dump_close(dump);
}

/* True when stdout is a pipe that nobody reads any more. */
static bool reader_is_gone(void) {
    struct pollfd out = {.fd = STDOUT_FILENO, .events = POLLOUT};
    return poll(&out, 1, 0) == 1 && (out.revents & POLLERR) != 0;
}

int cli_end(int code) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return code;
    const int error = errno;
    if (reader_is_gone()) return code; /* `| head` has what it wanted */
    fprintf(stderr, "waybill: the output cannot be written: %s\n", strerror(error));
    return CLI_DATA;
}
