/* paths.c - names in a folder: put together, and asked for. */
#include "grpo.h"

#include <stdio.h>
#include <unistd.h>

wb_status path_join(char *path, const char *dir, const char *name) {
    int n = snprintf(path, PATH_BYTES, "%s/%s", dir, name);
    return n > 0 && n < PATH_BYTES ? WB_OK : wb_fail(WB_INVALID_ARGUMENT, "%s/%s: path too long", dir, name);
}

bool path_has(const char *dir, const char *name) {
    char path[PATH_BYTES];
    return path_join(path, dir, name) == WB_OK && access(path, R_OK) == 0;
}
