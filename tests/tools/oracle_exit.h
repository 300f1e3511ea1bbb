/* oracle_exit.h - the exit codes of an oracle, and how it stops where its input cannot be read. Whoever
 * includes it has defined ORACLE, the program's name in messages. */
#ifndef ORACLE_EXIT_H
#define ORACLE_EXIT_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* EXIT_NO_LIMIT: nothing could be compared; ctest takes it for skipped. */
enum { EXIT_PASS = 0, EXIT_DIFFERENT = 1, EXIT_UNREADABLE = 2, EXIT_NO_LIMIT = 77 };

static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs(ORACLE ": ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(EXIT_UNREADABLE);
}

/* Zeros; freed with free(). */
static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count > 0 ? count : 1, size);
    if (!memory) die("out of memory");
    return memory;
}

#endif
