/* command_output.c - a dump file that a command writes: under another name until it is whole; see command.h.
 * Refuses: a path where something is, unless it is to be replaced. */
#include "command.h"
#include "wb_check.h"
#include "wb_file.h"
#include "wb_memory.h"
#include "wb_text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void free_output(cli_output *o) {
    free(o->path);
    free(o->temp);
    *o = (cli_output){0};
}

wb_status cli_output_look(const char *path, bool force, bool *direct_out) {
    struct stat info;
    bool direct = false;
    WB_TRY(wb_is_descriptor(path, &direct));
    if (!direct && stat(path, &info) == 0) {
        direct = S_ISFIFO(info.st_mode) || S_ISCHR(info.st_mode);
        if (!direct && !force)
            return wb_fail(WB_IO, "%s: expected a path where nothing is, found a file (--force replaces it)",
                           path);
    }
    *direct_out = direct;
    return WB_OK;
}

static wb_status name_both(cli_output *o, const char *path, bool force) {
    WB_TRY(wb_follow_links(path, &o->path));
    WB_TRY(cli_output_look(path, force, &o->direct));
    return o->direct ? wb_text_format(&o->temp, "%s/waybill.%ld.tmp", CLI_SPOOL_FOLDER, (long)getpid())
                     : wb_text_format(&o->temp, "%s.%ld.tmp", o->path, (long)getpid());
}

int cli_output_open(const char *path, bool force, const char *producer, wb_codec codec,
                    const wb_route_model *model, cli_output *output_out) {
    cli_output o = {0};
    char text[64];
    wb_dump_options options = wb_dump_options_default();
    snprintf(text, sizeof text, "waybill %s %s", producer, wb_version());
    options.producer = text;
    options.codec = codec;
    wb_status status = name_both(&o, path, force);
    if (status == WB_OK) (void)unlink(o.temp); /* of a process of this number that was killed */
    if (status == WB_OK) status = wb_dump_create(o.temp, model, &options, &o.writer);
    if (status == WB_OK) {
        *output_out = o;
        return CLI_OK;
    }
    free_output(&o);
    return cli_fail();
}

enum { BLOCK_BYTES = 1 << 20 };

static wb_status copy_blocks(int from, const char *name, char *block, wb_new_file *to) {
    for (;;) {
        const ssize_t got = read(from, block, BLOCK_BYTES);
        if (got == 0) return WB_OK;
        if (got < 0 && errno != EINTR) return wb_fail(WB_IO, "%s: %s", name, strerror(errno));
        if (got > 0) WB_TRY(wb_new_file_write(to, block, (size_t)got));
    }
}

/* The whole dump, to what cannot be renamed over. */
static wb_status give(const cli_output *o) {
    wb_new_file to;
    char *block = NULL;
    const int from = open(o->temp, O_RDONLY | O_CLOEXEC);
    if (from < 0) return wb_fail(WB_IO, "%s: %s", o->temp, strerror(errno));
    wb_status status = WB_NEW(block, BLOCK_BYTES, "a dump");
    if (status == WB_OK) status = wb_new_file_open(o->path, &to);
    if (status == WB_OK) {
        status = copy_blocks(from, o->temp, block, &to);
        if (status == WB_OK) status = wb_new_file_sync(&to);
        if (status == WB_OK) status = wb_new_file_commit(&to);
        if (status != WB_OK) wb_new_file_discard(&to);
    }
    free(block);
    close(from);
    return status;
}

int cli_output_commit(cli_output *o) {
    wb_status status = wb_dump_finish(o->writer);
    o->writer = NULL;
    if (status == WB_OK) status = o->direct ? give(o) : wb_file_move(o->temp, o->path);
    if (status != WB_OK) (void)cli_fail();
    if (o->direct || status != WB_OK) (void)unlink(o->temp);
    free_output(o);
    return status == WB_OK ? CLI_OK : CLI_DATA;
}

void cli_output_discard(cli_output *o) {
    if (!o->temp) return;
    /* The file is removed: whether its end could be written is nobody's business. */
    WB_IGNORE(wb_dump_finish(o->writer));
    (void)unlink(o->temp);
    free_output(o);
}
