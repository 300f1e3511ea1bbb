/* split.c - `waybill split`: a dump's records into several files of a new directory. Records are first given
 * the number of their file, and then written file by file: one is open at a time, however many there are. */
#include "command.h"
#include "wb_check.h"
#include "wb_file.h"
#include "wb_memory.h"
#include "wb_text.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct split_options {
    uint64_t records, bytes;
    bool group, version;
} split_options;

static const cli_option table[] = {
    {.name = "records",
     .argument = "N",
     .type = CLI_NUMBER,
     .offset = offsetof(split_options, records),
     .min = 1,
     .max = UINT64_MAX,
     .default_text = "none",
     .help = "N records to a file"},
    {.name = "bytes",
     .argument = "N",
     .type = CLI_NUMBER,
     .offset = offsetof(split_options, bytes),
     .min = 1,
     .max = UINT64_MAX,
     .default_text = "none",
     .help = "as many records to a file as have N bytes together, and at least one"},
    {.name = "by-group",
     .type = CLI_FLAG,
     .offset = offsetof(split_options, group),
     .help = "a file for each prompt group"},
    {.name = "by-version",
     .type = CLI_FLAG,
     .offset = offsetof(split_options, version),
     .help = "a file for each weight version that records were finished under"},
};

static const cli_operand operands[] = {{"DUMP", CLI_INPUT}, {"DIRECTORY", CLI_FOLDER}};

/* A record and the file that it goes to. */
typedef struct place {
    uint64_t key, record;
    bool known; /* by version: the record has one; elsewhere true */
} place;

typedef struct split {
    const split_options *options;
    wb_dump *dump;
    uint64_t n;
    place *places;                 /* [n] */
    uint64_t part, records, bytes; /* of the part being filled */
    char *directory, *folder;      /* without a slash at its end; what it is until it is whole */
} split;

static void next_part(split *s, uint64_t record_bytes) {
    const split_options *o = s->options;
    const bool full =
        o->records > 0 ? s->records == o->records : s->records > 0 && record_bytes > o->bytes - s->bytes;
    if (full) {
        s->part++;
        s->records = s->bytes = 0;
    }
    s->records++;
    /* A record that is larger than a part fills it. */
    s->bytes = o->bytes > 0 && record_bytes > o->bytes - s->bytes ? o->bytes : s->bytes + record_bytes;
}

static wb_status find_place(split *s, uint64_t i) {
    wb_dump_entry entry;
    WB_TRY(wb_dump_get_entry(s->dump, i, &entry));
    s->places[i] = (place){.record = i, .known = true};
    if (s->options->group) {
        s->places[i].key = entry.group;
    } else if (s->options->version) {
        s->places[i].key = entry.weight_version;
        s->places[i].known = entry.n_spans > 0;
    } else {
        next_part(s, entry.bytes);
        s->places[i].key = s->part;
    }
    return WB_OK;
}

static int by_place(const void *a, const void *b) {
    const place *x = a, *y = b;
    if (x->known != y->known) return x->known ? 1 : -1;
    if (x->key != y->key) return x->key > y->key ? 1 : -1;
    return (x->record > y->record) - (x->record < y->record);
}

/* Names of one length, so that their order is that of the numbers. */
static wb_status name_of(const split *s, const place *p, char **path_out) {
    const char *what = s->options->group ? "group" : s->options->version ? "version" : "part";
    char digits[24];
    const int width = snprintf(digits, sizeof digits, "%" PRIu64, s->places[s->n - 1].key);
    if (!p->known) return wb_text_format(path_out, "%s/%s-none.wbr", s->folder, what);
    return wb_text_format(path_out, "%s/%s-%0*" PRIu64 ".wbr", s->folder, what, width, p->key);
}

/* Writes the file that records places[first ..] go to; *end_out is the first place of the next file. */
static int write_file(split *s, uint64_t first, uint64_t *end_out, cli_progress *progress) {
    cli_output out = {0};
    char *path = NULL;
    uint64_t i = first;
    if (name_of(s, &s->places[first], &path) != WB_OK) return cli_fail();
    int code = cli_output_open(path, false, "split", WB_CODEC_RAW, wb_dump_model(s->dump), &out);
    for (; code == CLI_OK && i < s->n; i++) {
        const place *p = &s->places[i];
        if (p->key != s->places[first].key || p->known != s->places[first].known) break;
        if (wb_dump_append_stored(out.writer, s->dump, p->record) != WB_OK) code = cli_fail();
        cli_progress_records(progress, i + 1, s->n, 0);
    }
    if (code == CLI_OK) code = cli_output_commit(&out);
    cli_output_discard(&out);
    free(path);
    *end_out = i;
    return code;
}

static int write_files(split *s) {
    cli_progress progress = cli_progress_start();
    int code = CLI_OK;
    uint64_t files = 0;
    for (uint64_t at = 0; at < s->n && code == CLI_OK; files++) code = write_file(s, at, &at, &progress);
    cli_progress_end(&progress);
    if (code == CLI_OK) printf("%" PRIu64 " records in %" PRIu64 " files\n", s->n, files);
    return code;
}

/* Removes what was written, which is not to be taken for a whole dump. */
static void remove_folder(split *s) {
    char *path = NULL;
    for (uint64_t i = 0; i < s->n; i++) {
        const bool first = i == 0 || by_place(&(place){s->places[i].key, 0, s->places[i].known},
                                              &(place){s->places[i - 1].key, 0, s->places[i - 1].known}) != 0;
        if (!first || name_of(s, &s->places[i], &path) != WB_OK) continue;
        (void)unlink(path);
        free(path);
    }
    (void)rmdir(s->folder);
}

static int split_into(split *s, const char *directory) {
    struct stat info;
    if (lstat(directory, &info) == 0 && !wb_dir_is_empty(directory)) {
        WB_IGNORE(wb_fail(WB_IO, "%s: expected a new or an empty directory", directory));
        return cli_fail();
    }
    size_t length = strlen(directory);
    while (length > 1 && directory[length - 1] == '/') length--;
    if (wb_text_format(&s->directory, "%.*s", (int)length, directory) != WB_OK ||
        wb_text_format(&s->folder, "%s.%ld.tmp", s->directory, (long)getpid()) != WB_OK ||
        wb_dir_create(s->folder) != WB_OK)
        return cli_fail();
    int code = write_files(s);
    if (code == CLI_OK && wb_file_move(s->folder, s->directory) != WB_OK) code = cli_fail();
    if (code != CLI_OK) remove_folder(s);
    return code;
}

static int split_dump(split *s, const char *directory) {
    wb_status status = WB_NEW(s->places, s->n, "split");
    for (uint64_t i = 0; i < s->n && status == WB_OK; i++) status = find_place(s, i);
    if (status != WB_OK) return cli_fail();
    qsort(s->places, s->n, sizeof *s->places, by_place);
    return split_into(s, directory);
}

static int run(const cli_command *self, const cli_arguments *arguments) {
    split s = {.options = arguments->options};
    const split_options *o = s.options;
    if ((o->records > 0) + (o->bytes > 0) + o->group + o->version != 1)
        return cli_usage_error(self, "expected one of --records, --bytes, --by-group, --by-version");
    int code = cli_open_dump(arguments->dump, &s.dump);
    if (code == CLI_OK) {
        s.n = wb_dump_get_info(s.dump).records;
        code = split_dump(&s, arguments->operands.items[1]);
    }
    free(s.places);
    free(s.directory);
    free(s.folder);
    cli_close_dump(s.dump);
    return code;
}

const cli_command cli_split = {
    .name = "split",
    .summary = "records of a dump in several files",
    .description =
        "Writes the records of DUMP into files of DIRECTORY, which is to be new or empty and appears when "
        "all of them are whole. Records are copied as they are stored; one whose prompt was stored with a "
        "record that goes to another file is encoded anew. In a file records keep their order.",
    .options = table,
    .n_options = sizeof table / sizeof table[0],
    .options_size = sizeof(split_options),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .run = run,
};
