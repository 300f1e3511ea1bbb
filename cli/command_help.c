/* command_help.c - usage and `waybill COMMAND --help`, from the subcommand's table of options; see command.h.
 *
 * make_man.sh makes the manual page from this text and so relies on its form: a line of usage, paragraphs,
 * headings that end with a colon, and options of two columns with two spaces between. */
#include "command.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 96 };

/* Words of `text` from `column` on, later lines from `indent` on, and a line end. */
static void print_wrapped(const char *text, size_t column, size_t indent) {
    bool first = true; /* of its line */
    while (*text) {
        const size_t length = strcspn(text, " ");
        if (!first && column + 1 + length > WIDTH) {
            printf("\n%*s", (int)indent, "");
            column = indent;
            first = true;
        }
        printf("%s%.*s", first ? "" : " ", (int)length, text);
        column += length + (first ? 0 : 1);
        first = false;
        text += length;
        text += strspn(text, " ");
    }
    putchar('\n');
}

static void print_option_name(FILE *out, const cli_option *o) {
    fprintf(out, "--%s%s%s", o->name, o->argument ? " " : "", o->argument ? o->argument : "");
}

static size_t option_name_length(const cli_option *o) {
    return 2 + strlen(o->name) + (o->argument ? 1 + strlen(o->argument) : 0);
}

void cli_print_usage(FILE *out, const cli_command *self) {
    fprintf(out, "usage: waybill %s", self->name);
    if (self->synopsis) {
        fprintf(out, " %s\n", self->synopsis);
        return;
    }
    for (size_t i = 0; i < self->n_options; i++) {
        fprintf(out, " [");
        print_option_name(out, &self->options[i]);
        fprintf(out, "]");
    }
    size_t n = 0;
    const cli_operand *operands = cli_operands_of(self, &n);
    for (size_t i = 0; i < n; i++)
        fprintf(out, " %s%s", operands[i].name, operands[i].type == CLI_INPUTS ? "..." : "");
    fprintf(out, "\n");
}

int cli_usage_error(const cli_command *self, const char *format, ...) {
    va_list args;
    fprintf(stderr, "waybill %s: ", self->name);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n");
    cli_print_usage(stderr, self);
    return CLI_USAGE;
}

/* " (default 256)" into text_out; nothing where an option has no default worth saying. */
static void describe_default(const cli_option *o, const void *options, char *text_out, size_t size) {
    const void *at = (const char *)options + o->offset;
    text_out[0] = '\0';
    if (o->default_text)
        snprintf(text_out, size, " (default %s)", o->default_text);
    else if (o->type == CLI_NUMBER && !o->required)
        snprintf(text_out, size, " (default %" PRIu64 ")", *(const uint64_t *)at);
    else if (o->type == CLI_DECIMAL)
        snprintf(text_out, size, " (default %.8g)", *(const double *)at);
    else if (o->type != CLI_FLAG && o->type != CLI_NUMBER && o->type != CLI_INPUTS &&
             *(const char *const *)at)
        snprintf(text_out, size, " (default %s)", *(const char *const *)at);
}

static void print_options(const cli_command *self, const void *options) {
    size_t width = 0;
    for (size_t i = 0; i < self->n_options; i++) {
        const size_t length = option_name_length(&self->options[i]);
        width = length > width ? length : width;
    }
    for (size_t i = 0; i < self->n_options; i++) {
        const cli_option *o = &self->options[i];
        char text[512], default_text[128];
        if (o->heading) printf("\n%s:\n", o->heading);
        printf("  ");
        print_option_name(stdout, o);
        printf("%*s", (int)(width + 2 - option_name_length(o)), "");
        describe_default(o, options, default_text, sizeof default_text);
        snprintf(text, sizeof text, "%s%s", o->help, default_text);
        print_wrapped(text, width + 4, width + 4);
    }
}

void cli_print_help(const cli_command *self) {
    void *options = wb_alloc(1, self->options_size, "defaults");
    if (!options) {
        cli_fail();
        return;
    }
    if (self->set_defaults) self->set_defaults(options);
    cli_print_usage(stdout, self);
    putchar('\n');
    print_wrapped(self->description, 0, 0);
    if (self->n_options > 0) {
        if (!self->options[0].heading) printf("\nOptions:\n");
        print_options(self, options);
    }
    free(options);
}
