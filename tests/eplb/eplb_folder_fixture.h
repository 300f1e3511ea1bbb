/* eplb_folder_fixture.h - the folder of a test's files. */
#ifndef EPLB_FOLDER_FIXTURE_H
#define EPLB_FOLDER_FIXTURE_H

#include "formats/dump_fixture.h"
#include "support/temp_files.h"

static temp_path dir;

/* In memory where it can be: syncing a disk takes its time. */
static inline int setup(void **unused) {
    (void)unused;
    fixture_directory(dir.text);
    return 0;
}

static inline int teardown(void **unused) {
    (void)unused;
    temp_remove(dir);
    return 0;
}

static inline temp_path put_bytes(const char *name, const void *bytes, size_t size) {
    const temp_path path = temp_in(dir.text, name);
    temp_write(path.text, bytes, size);
    return path;
}

static inline temp_path put(const char *name, const char *text) {
    return put_bytes(name, text, strlen(text));
}

#endif
