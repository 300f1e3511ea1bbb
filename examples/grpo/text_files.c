/* text_files.c - files of text that others wrote, read with a bound: lines, and JSON as a whole. Refuses:
 * what is no file and may have no end, and lines and files that no prompt and no state is as long as. */
#include "grpo.h"
#include "wb_file.h"
#include "wb_memory.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

enum { MAX_LINE_BYTES = 64 << 20, MAX_JSON_BYTES = 64 << 20 };

wb_status text_open(const char *path, FILE **file_out) {
    struct stat info;
    FILE *file = fopen(path, "r");
    if (!file) return wb_fail(errno == ENOENT ? WB_NOT_FOUND : WB_IO, "%s: cannot be opened: %m", path);
    if (fstat(fileno(file), &info) == 0 && (S_ISREG(info.st_mode) || S_ISFIFO(info.st_mode))) {
        *file_out = file;
        return WB_OK;
    }
    fclose(file);
    return wb_fail(WB_INVALID_ARGUMENT, "%s: expected a regular file or a pipe", path);
}

wb_status text_line(FILE *file, const char *path, size_t number, char **line, size_t *capacity,
                    int64_t *length_out) {
    size_t n = 0;
    int c;
    while ((c = getc_unlocked(file)) != EOF) {
        if (n == MAX_LINE_BYTES)
            return wb_fail(WB_CAPACITY, "%s: line %zu: expected at most %d bytes", path, number,
                           MAX_LINE_BYTES);
        WB_TRY(WB_GROW(*line, n + 2, capacity, path));
        (*line)[n++] = (char)c;
        if (c == '\n') break;
    }
    if (ferror(file)) return wb_fail(WB_IO, "%s: cannot be read: %m", path);
    if (n > 0) (*line)[n] = '\0';
    *length_out = n > 0 ? (int64_t)n : -1;
    return WB_OK;
}

wb_status text_json(const char *path, json_t **object_out) {
    char *text;
    size_t bytes;
    json_error_t error;
    WB_TRY(wb_file_read(path, MAX_JSON_BYTES, &text, &bytes));
    json_t *object = json_loadb(text, bytes, 0, &error);
    free(text);
    if (!object)
        return wb_fail(WB_CORRUPT, "%s: line %d, column %d: %s", path, error.line, error.column, error.text);
    *object_out = object;
    return WB_OK;
}
