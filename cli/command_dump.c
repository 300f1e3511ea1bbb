/* command_dump.c - dumps that a command reads: a file, a directory, or a pipe, which is first copied into a
 * file without a name; see command.h. Says what a dump has lost. */
#include "command.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SPOOL_BYTES = 1 << 20 };

/* Everything that the pipe gives, into the file. */
static wb_status copy_pipe(int from, int to, const char *path) {
    cli_progress progress = cli_progress_start();
    uint64_t copied = 0;
    char *block = NULL;
    ssize_t got = 1;
    WB_TRY(WB_NEW(block, SPOOL_BYTES, "a pipe"));
    wb_status status = WB_OK;
    while (status == WB_OK && (got = read(from, block, SPOOL_BYTES)) != 0) {
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) status = wb_fail(WB_IO, "%s: %s", path, strerror(errno));
        for (ssize_t done = 0, wrote = 0; status == WB_OK && done < got; done += wrote) {
            wrote = write(to, block + done, (size_t)(got - done));
            if (wrote < 0 && errno != EINTR)
                status = wb_fail(WB_IO, "%s: copied into %s: %s", path, CLI_SPOOL_FOLDER, strerror(errno));
            if (wrote < 0) wrote = 0;
        }
        copied += got > 0 ? (uint64_t)got : 0;
        if (cli_progress_due(&progress))
            cli_progress_show(&progress, (double)copied, 0, "%" PRIu64 " MB read", copied / 1000000);
    }
    cli_progress_end(&progress);
    free(block);
    return status;
}

/* The pipe's bytes in a file that ends with the process; *fd_out is its descriptor. */
static wb_status spool(const char *path, int *fd_out) {
    char name[] = CLI_SPOOL_FOLDER "/waybill.XXXXXX";
    const int from = open(path, O_RDONLY | O_CLOEXEC);
    if (from < 0) return wb_fail(WB_IO, "%s: cannot be opened: %s", path, strerror(errno));
    const int to = mkstemp(name);
    wb_status status = to >= 0 ? WB_OK : wb_fail(WB_IO, "%s: %s", name, strerror(errno));
    if (status == WB_OK) (void)unlink(name);
    if (status == WB_OK) status = copy_pipe(from, to, path);
    close(from);
    if (status != WB_OK && to >= 0) close(to);
    if (status == WB_OK) *fd_out = to;
    return status;
}

wb_status cli_dump_path(const char *path, cli_spooled *name_out) {
    struct stat info;
    int fd = -1;
    name_out->path = path;
    if (stat(path, &info) != 0 || !S_ISFIFO(info.st_mode)) return WB_OK;
    WB_TRY(spool(path, &fd));
    /* Messages then say what was asked for, which a number of ours is not. */
    if (strcmp(path, "/dev/stdin") == 0 && dup2(fd, STDIN_FILENO) >= 0) {
        close(fd);
        return WB_OK;
    }
    snprintf(name_out->name, sizeof name_out->name, "/dev/fd/%d", fd);
    name_out->path = name_out->name;
    return WB_OK;
}

int cli_open_dump(const char *path, wb_dump **dump_out) {
    cli_spooled spooled;
    wb_status status = cli_dump_path(path, &spooled);
    if (status == WB_OK) status = wb_dump_open(spooled.path, dump_out);
    return status == WB_OK ? CLI_OK : cli_fail();
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
