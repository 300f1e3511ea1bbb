/* wb_file.h - small files read whole, and files that appear only when they are whole (not installed).
 *
 * Everything that Waybill writes and is not appended to (a dump is) goes through wb_new_file: checkpoints,
 * placements, metrics. */
#ifndef WB_FILE_H
#define WB_FILE_H

#include "wb_base.h"

/* The whole of a regular file of at most `max_bytes`, NUL-terminated; freed with free(). NOT_FOUND when
 * absent. */
wb_status wb_file_read(const char *path, size_t max_bytes, char **text_out, size_t *bytes_out);

/* Creates `dir` and what is missing above it. */
wb_status wb_dir_create(const char *dir);

/* Whether `path` is a directory, or a link to one, with nothing in it. */
bool wb_dir_is_empty(const char *path);

/* The end of the symbolic links at `path`, which is `path` itself where that is none and need not exist, or
 * the name of a descriptor on the way; freed with free(). */
wb_status wb_follow_links(const char *path, char **end_out);

/* Whether both paths name one file or directory, through links; also one that is not there yet. False for a
 * device or a pipe, which several may write. */
wb_status wb_same_file(const char *a, const char *b, bool *same_out);

/* Whether `path` is, or is a link to, the name of an open descriptor (/dev/stdout, /dev/fd/3), which is
 * written where its owner is. */
wb_status wb_is_descriptor(const char *path, bool *is_out);

/* A new file under construction: written to "<path>.<process id>.tmp", synced, renamed over `path`, the
 * directory synced. A crash leaves the old file or the new one, never a mixture.
 *
 * A symbolic link is followed, and what it points to is replaced by a file of the same permissions. A
 * device or a named pipe is written directly, since a rename would put a file in its place; so is an open
 * descriptor (/dev/stdout, /dev/fd/3), where its owner is. A directory or a socket is refused. */
typedef struct wb_new_file {
    int fd;
    char *path;       /* what is replaced: the end of the links */
    char *temp;       /* NULL where it is written directly */
    uint64_t written; /* bytes */
} wb_new_file;
wb_status wb_new_file_open(const char *path, wb_new_file *file);
wb_status wb_new_file_write(wb_new_file *file, const void *data, size_t bytes);
wb_status wb_new_file_sync(wb_new_file *file);   /* no more writes after it */
wb_status wb_new_file_commit(wb_new_file *file); /* after the sync: renames, and frees also on failure */
void wb_new_file_discard(wb_new_file *file);     /* removes the temporary; a no-op after commit */

/* Renames a whole, synced file or directory over `to`, and syncs the directory that has it. */
wb_status wb_file_move(const char *from, const char *to);

wb_status wb_file_replace(const char *path, const char *text, size_t bytes); /* the four in one */

/* Whether `name` is that of a temporary of wb_new_file, which a killed process may have left: the length
 * of the name it stood for, 0 when it is none. */
size_t wb_new_file_stem(const char *name);

#endif
