/* convert_import.c - see convert.h. */
#include "convert/convert.h"
#include "wb_check.h"
#include "wb_import.h"

#include <inttypes.h>

typedef struct importing {
    wb_import *import;
    cli_output out;
    bool skip_bad;
    uint64_t records, tokens, rows, missing, skipped;
} importing;

static void count(importing *m, const wb_record *r) {
    uint64_t rows = 0;
    for (uint32_t i = 0; i < r->n_routes; i++) rows += r->routes[i].rows;
    m->records++;
    m->tokens += r->n_tokens;
    m->rows += wb_record_count_rows(r);
    m->missing += rows - wb_record_count_rows(r);
}

/* A request that is refused is said; the rest is kept where that was asked for. What is wrong with the
 * machine is wrong with all of them. */
static bool may_skip(importing *m, cli_progress *progress, wb_status status) {
    if (!m->skip_bad || status == WB_OUT_OF_MEMORY || status == WB_IO) return false;
    convert_skipped(progress, &m->skipped);
    return true;
}

static wb_status take_all(importing *m, cli_progress *progress, convert_input *input) {
    for (;;) {
        wb_record record;
        bool found = true;
        wb_status status = wb_import_next(m->import, &record, &found);
        if (status == WB_OK && !found) return WB_OK;
        if (status == WB_OK) status = wb_dump_append(m->out.writer, &record);
        if (status == WB_OK)
            count(m, &record);
        else if (!may_skip(m, progress, status))
            return status;
        convert_input_pass(input, wb_import_bytes_read(m->import));
        if (cli_progress_due(progress))
            cli_progress_show(progress, (double)wb_import_bytes_read(m->import), (double)input->size,
                              "%" PRIu64 " records, %" PRIu64 " tokens", m->records, m->tokens);
    }
}

static wb_status open_answers(const convert_options *o, const char *answers, const convert_input *input,
                              convert_model *model, importing *m) {
    wb_import_layout layout;
    WB_TRY(wb_import_layout_find(o->from, &layout));
    WB_TRY(convert_model_read(o->model, model));
    WB_TRY(wb_import_open(answers, input->bytes, input->size, layout, &model->routes, &m->import));
    wb_import_set_vocab_size(m->import, model->vocab_size);
    if (!wb_import_has_tokens(m->import))
        fprintf(
            stderr,
            "waybill: %s has routes without tokens: those of the dump are zero, and no replay takes them\n",
            answers);
    return WB_OK;
}

static void say_left_out(const convert_options *o, const importing *m) {
    const uint64_t n = wb_import_indexers_left_out(m->import);
    if (n == 0) return;
    fprintf(stderr,
            "waybill: what indexers chose in %" PRIu64
            " requests is left out: by the config.json in %s the model has none\n",
            n, o->model);
}

static wb_status import_all(const char *answers, convert_input *input, importing *m) {
    cli_progress progress = cli_progress_start();
    wb_status status = take_all(m, &progress, input);
    cli_progress_end(&progress);
    if (status == WB_OK && m->records == 0)
        status = wb_fail(WB_NOT_FOUND, "%s: expected requests, found none that can be taken", answers);
    return status;
}

/* The dump is under another name until it is whole, so that one that was killed is never taken for it. */
int convert_import(const convert_options *options, const char *answers) {
    importing m = {.skip_bad = options->skip_bad};
    convert_input input;
    convert_model model;
    if (convert_input_open(answers, &input) != WB_OK) return cli_fail();
    int code = open_answers(options, answers, &input, &model, &m) == WB_OK ? CLI_OK : cli_fail();
    if (code == CLI_OK)
        code =
            cli_output_open(options->output, options->force, "convert", WB_CODEC_RAW, &model.routes, &m.out);
    if (code == CLI_OK && import_all(answers, &input, &m) != WB_OK) code = cli_fail();
    if (code == CLI_OK) say_left_out(options, &m);
    if (code == CLI_OK) code = cli_output_commit(&m.out);
    cli_output_discard(&m.out);
    if (code == CLI_OK)
        fprintf(convert_says_to(options->output),
                "%" PRIu64 " records, %" PRIu64 " tokens, %" PRIu64 " rows, %" PRIu64 " missing, %" PRIu64
                " skipped\n",
                m.records, m.tokens, m.rows, m.missing, m.skipped);
    wb_import_close(m.import);
    convert_input_close(&input);
    return code;
}
