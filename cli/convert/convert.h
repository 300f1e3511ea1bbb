/* convert.h - the parts of `waybill convert`. */
#ifndef WB_CLI_CONVERT_H
#define WB_CLI_CONVERT_H

#include "command.h"
#include "wb_model.h"

typedef struct convert_options {
    const char *from, *to, *model, *output;
    bool skip_bad, force;
} convert_options;

/* Answers of another system into a dump (convert_import.c); a dump into what others read (convert_export.c).
 * Return the exit code; a failure has been said, and no output is left behind. */
int convert_import(const convert_options *options, const char *answers);
int convert_export(const convert_options *options, const char *dump);

/* Says that what the thread's error message names is left out, and counts it. */
void convert_skipped(const cli_progress *progress, uint64_t *skipped);

/* Where the numbers of what was done go: to standard error where the output is standard output. */
FILE *convert_says_to(const char *output);

/* The bytes of a file, or of a pipe, whole (convert_input.c). */
typedef struct convert_input {
    const void *bytes;
    size_t size;
    void *mapped, *read; /* which of the two they are */
    size_t passed;       /* of a file: whose pages were given back */
} convert_input;
wb_status convert_input_open(const char *path, convert_input *input_out);

/* Gives the pages of a file before byte `begin` back, so that answers of any size take as much memory as one
 * of them. They come again where somebody looks at them after all. */
void convert_input_pass(convert_input *input, size_t begin);
void convert_input_close(convert_input *input);

/* Whose routes those of the model at DIR are (convert_model.c). */
typedef struct convert_model {
    wb_route_model routes;
    uint32_t moe_layers[WB_ROUTE_LISTS_MAX];
    uint32_t vocab_size;
} convert_model;
wb_status convert_model_read(const char *dir, convert_model *model_out);

#endif
