/* convert_export.c - see convert.h. */
#include "convert/convert.h"
#include "wb_check.h"
#include "wb_export.h"
#include "wb_file.h"

#include <inttypes.h>

static wb_status write_file(void *file, const void *bytes, size_t size) {
    return wb_new_file_write(file, bytes, size);
}

typedef struct exporting {
    cli_progress progress;
    uint64_t records, skipped;
} exporting;

/* Some layouts go over the records several times: what is shown is the part of the work, in records. */
static void show(void *ctx, uint64_t done, uint64_t total) {
    exporting *e = ctx;
    const uint64_t part = (uint64_t)((double)done / (double)total * (double)e->records);
    cli_progress_records(&e->progress, part, e->records, 0);
}

static bool skip(void *ctx, wb_status status) {
    exporting *e = ctx;
    (void)status;
    convert_skipped(&e->progress, &e->skipped);
    return true;
}

static bool has_indexer(wb_dump *dump) {
    const uint64_t n = wb_dump_model(dump)->n_indexer_layers > 0 ? wb_dump_get_info(dump).records : 0;
    bool has = false;
    for (uint64_t i = 0; i < n && !has; i++) {
        wb_record record;
        has = wb_dump_record(dump, i, &record) == WB_OK && record.indexer;
        wb_dump_release(dump, i);
    }
    return has;
}

static wb_status write_all(wb_dump *dump, wb_export_layout layout, const convert_options *o, exporting *e) {
    wb_new_file file;
    bool is_direct = false;
    WB_TRY(cli_output_look(o->output, o->force, &is_direct));
    WB_TRY(wb_new_file_open(o->output, &file));
    wb_status status = wb_export_dump(dump, layout, write_file, &file, o->skip_bad ? skip : NULL, show, e);
    cli_progress_end(&e->progress);
    if (status == WB_OK) status = wb_new_file_sync(&file);
    if (status == WB_OK) return wb_new_file_commit(&file);
    wb_new_file_discard(&file);
    return status;
}

int convert_export(const convert_options *options, const char *path) {
    exporting e = {.progress = cli_progress_start()};
    wb_dump *dump = NULL;
    wb_export_layout layout;
    if (wb_export_layout_find(options->to, &layout) != WB_OK) return cli_fail();
    int code = cli_open_dump(path, &dump);
    if (code != CLI_OK) return code;
    e.records = wb_dump_get_info(dump).records;
    code = write_all(dump, layout, options, &e) == WB_OK ? CLI_OK : cli_fail();
    if (code == CLI_OK && !wb_export_keeps_indexer(layout) && has_indexer(dump))
        fprintf(stderr, "waybill: what indexers chose is left out: %s has no place for it\n", options->to);
    if (code == CLI_OK)
        fprintf(convert_says_to(options->output), "%" PRIu64 " records, %" PRIu64 " skipped\n",
                wb_dump_get_info(dump).records - e.skipped, e.skipped);
    cli_close_dump(dump);
    return code;
}
