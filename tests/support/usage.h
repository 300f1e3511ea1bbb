/* usage.h - what the programs beside the tests, which take a few words, do with --help and with options that
 * they do not have: a word like --help must never be taken for the name of a file. */
#ifndef SUPPORT_USAGE_H
#define SUPPORT_USAGE_H

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Whether the program ends here, with *code_out: --help prints `usage` to standard output; an option, and
 * more or fewer than least .. most words, print it to standard error. */
static inline bool usage_ends(int argc, char **argv, int least, int most, const char *usage, int *code_out) {
    bool right = argc - 1 >= least && argc - 1 <= most;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            fputs(usage, stdout);
            *code_out = 0;
            return true;
        }
        right = right && argv[i][0] != '-';
    }
    if (right) return false;
    fputs(usage, stderr);
    *code_out = 2;
    return true;
}

/* The whole number that `word` is, of least .. most; else says on standard error what `name` has to be, and
 * the program ends with exit code 2. NULL, a word that is not there: *value stays. */
static inline bool usage_number(const char *name, const char *word, long least, long most, long *value) {
    char *end;
    if (!word) return true;
    errno = 0;
    const long number = strtol(word, &end, 10);
    if (end != word && *end == '\0' && errno == 0 && number >= least && number <= most) {
        *value = number;
        return true;
    }
    fprintf(stderr, "%s: expected a number of %ld to %ld, found '%s'\n", name, least, most, word);
    return false;
}

#endif
