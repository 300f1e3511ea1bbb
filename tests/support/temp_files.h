/* temp_files.h - files and directories for tests, removed afterwards. Failures are cmocka's. */
#ifndef WB_TEST_TEMP_FILES_H
#define WB_TEST_TEMP_FILES_H

#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

typedef struct temp_path {
    char text[512];
} temp_path;

/* A new directory; ends with temp_remove. */
static inline temp_path temp_dir(void) {
    temp_path dir = {"/tmp/waybill-test-XXXXXX"};
    assert_non_null(mkdtemp(dir.text));
    return dir;
}

static inline temp_path temp_in(const char *dir, const char *name) {
    temp_path path;
    int n = snprintf(path.text, sizeof path.text, "%s/%s", dir, name);
    assert_true(n > 0 && (size_t)n < sizeof path.text);
    return path;
}

static inline int temp_remove_one(const char *path, const struct stat *info, int type, struct FTW *ftw) {
    (void)info, (void)type, (void)ftw;
    return remove(path);
}

static inline void temp_remove(temp_path dir) {
    assert_int_equal(nftw(dir.text, temp_remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

static inline void temp_write(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

/* The whole file, NUL-terminated, freed with free(). */
static inline char *temp_read(const char *path, size_t *bytes_out) {
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("%s cannot be opened", path);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    long size = ftell(file);
    assert_true(size >= 0);
    rewind(file);
    char *data = malloc((size_t)size + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, (size_t)size, file), (size_t)size);
    data[size] = '\0';
    fclose(file);
    if (bytes_out) *bytes_out = (size_t)size;
    return data;
}

static inline void temp_copy(const char *from, const char *to) {
    size_t bytes;
    char *data = temp_read(from, &bytes);
    temp_write(to, data, bytes);
    free(data);
}

static inline int temp_exists(const char *path) {
    return access(path, F_OK) == 0;
}

/* The latest error message has `part` in it. */
#define assert_message_has(part)                                            \
    do {                                                                    \
        if (!strstr(wb_error_message(), part))                              \
            fail_msg("message '%s' has no '%s'", wb_error_message(), part); \
    } while (0)

#endif
