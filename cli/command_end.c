/* command_end.c - how a subcommand ends: errors, and output that cannot be written; see command.h. */
#include "command.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

int cli_fail(void) {
    fflush(stdout); /* what was found before the fault, before it */
    fprintf(stderr, "waybill: %s\n", wb_error_message());
    return CLI_DATA;
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
