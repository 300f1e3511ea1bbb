/* usage.h - what the programs beside the tests, which take a few words, do with --help and with options that
 * they do not have: a word like --help must never be taken for the name of a file. */
#ifndef SUPPORT_USAGE_H
#define SUPPORT_USAGE_H

#include <stdbool.h>
#include <stdio.h>
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

#endif
