/* cat.c - `waybill cat`: records as JSON lines. Ids are by far most of what is printed: the text of each is
 * made once, and rows are put together from these texts. */
#include "command.h"
#include "report/report_json.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stddef.h>
#include <string.h>

typedef struct cat_options {
    const char *rid;
    bool json, tokens, routes, indexer;
    uint64_t limit;
} cat_options;

static const cli_option table[] = {
    {.name = "rid",
     .argument = "RID",
     .type = CLI_TEXT,
     .offset = offsetof(cat_options, rid),
     .help = "only this record"},
    {.name = "json",
     .type = CLI_FLAG,
     .offset = offsetof(cat_options, json),
     .help = "whole records: --tokens, --routes and --indexer"},
    {.name = "tokens",
     .type = CLI_FLAG,
     .offset = offsetof(cat_options, tokens),
     .help = "tokens, logprobs and the tokens kept by top-k and top-p too"},
    {.name = "routes",
     .type = CLI_FLAG,
     .offset = offsetof(cat_options, routes),
     .help = "routes too: [{start, rows}], rows as [row][layer][choice] of expert ids, null where not valid"},
    {.name = "indexer",
     .type = CLI_FLAG,
     .offset = offsetof(cat_options, indexer),
     .help = "what indexers chose too, where it is recorded: {start, rows}, rows as [row][layer] of "
             "positions, of "
             "the layers that have an indexer of their own"},
    {.name = "limit",
     .argument = "N",
     .type = CLI_NUMBER,
     .offset = offsetof(cat_options, limit),
     .max = UINT64_MAX,
     .default_text = "all",
     .help = "at most N records"},
};

static void set_defaults(void *options) {
    ((cat_options *)options)->limit = UINT64_MAX;
}

static void print_spans(const wb_record *r) {
    printf(",\"spans\":[");
    for (uint32_t i = 0; i < r->n_spans; i++)
        printf("%s[%" PRIu32 ",%" PRIu32 ",%" PRIu64 "]", i ? "," : "", r->spans[i].start, r->spans[i].end,
               r->spans[i].weight_version);
    printf("]");
}

static void print_sampling(const wb_sampling *sampling) {
    printf(",\"sampling\":{\"temperature\":");
    json_number((double)sampling->temperature);
    printf(",\"top_k\":%" PRIu32 ",\"top_p\":", sampling->top_k);
    json_number((double)sampling->top_p);
    printf("}");
}

static void print_ids(const uint32_t *ids, uint32_t n) {
    putchar('[');
    for (uint32_t i = 0; i < n; i++) printf("%s%" PRIu32, i ? "," : "", ids[i]);
    putchar(']');
}

static void print_numbers(const float *numbers, uint32_t n) {
    putchar('[');
    for (uint32_t i = 0; i < n; i++) {
        if (i) putchar(',');
        json_number((double)numbers[i]);
    }
    putchar(']');
}

static void print_mask(const wb_record *r) {
    printf(",\"sampling_mask\":[");
    for (uint32_t i = 0, from = 0; i < r->n_tokens - r->prompt_len; from = r->mask_ends[i++]) {
        if (i) putchar(',');
        print_ids(r->mask_ids + from, r->mask_ends[i] - from);
    }
    putchar(']');
}

static void print_tokens(const wb_record *r) {
    const uint32_t n = r->n_tokens - r->prompt_len;
    printf(",\"tokens\":");
    print_ids(r->tokens, r->n_tokens);
    printf(",\"logprobs\":");
    if (r->logprobs)
        print_numbers(r->logprobs, n);
    else
        printf("null");
    if (r->sampling_logprobs) {
        printf(",\"sampling_logprobs\":");
        print_numbers(r->sampling_logprobs, n);
    }
    if (r->mask_ends) print_mask(r);
}

/* ---- rows --------------------------------------------------------------------------------------- */

enum { ID_BYTES = 8 };

typedef struct id_text {
    char text[ID_BYTES - 1]; /* "65535," */
    uint8_t length;
} id_text;

typedef struct row_printer {
    wb_dtype dtype;
    id_text *texts; /* of every id that the type has: ids of a damaged dump may be out of the model's range */
    char *line;     /* a row */
    wb_owner memory;
} row_printer;

static wb_status open_rows(row_printer *p, const wb_route_model *m) {
    const size_t ids = wb_route_row_ids(m);
    p->dtype = wb_route_dtype(m->num_experts);
    const uint32_t n_texts = p->dtype == WB_U8 ? 256 : 65536;
    WB_TRY(WB_OWN(&p->memory, p->texts, n_texts, "texts of ids"));
    WB_TRY(WB_OWN(&p->memory, p->line, ids * (ID_BYTES - 1) + 2 * (size_t)m->n_moe_layers + 2 * ID_BYTES,
                  "a row"));
    for (uint32_t id = 0; id < n_texts; id++) {
        char text[16];
        p->texts[id].length = (uint8_t)snprintf(text, sizeof text, "%" PRIu32 ",", id);
        memcpy(p->texts[id].text, text, p->texts[id].length);
    }
    return WB_OK;
}

/* Writes a row without looking at each character: the comma after a layer's last id becomes its bracket. */
static void print_row(const row_printer *p, const wb_route_model *m, const void *row) {
    char *at = p->line;
    size_t index = 0;
    *at++ = '[';
    for (uint32_t l = 0; l < m->n_moe_layers; l++) {
        *at++ = '[';
        for (uint32_t k = wb_route_layer_k(m, l); k > 0; k--) {
            const id_text *text = &p->texts[wb_route_id(row, p->dtype, index++)];
            memcpy(at, text->text, sizeof text->text);
            at += text->length;
        }
        at[-1] = ']';
        *at++ = ',';
    }
    at[-1] = ']';
    fwrite(p->line, 1, (size_t)(at - p->line), stdout);
}

static void print_routes(const row_printer *p, const wb_route_model *m, const wb_record *r) {
    printf(",\"routes\":[");
    for (uint32_t i = 0; i < r->n_routes; i++) {
        const wb_route_rows *run = &r->routes[i];
        printf("%s{\"start\":%" PRIu32 ",\"rows\":[", i ? "," : "", run->start);
        for (uint32_t t = 0; t < run->rows; t++) {
            if (t) putchar(',');
            const void *row = wb_record_row(m, r, run->start + t);
            if (row)
                print_row(p, m, row);
            else
                printf("null");
        }
        printf("]}");
    }
    printf("]");
}

static void print_choice(const wb_indexer_choice *choice) {
    putchar('[');
    for (uint32_t j = 0; j < choice->count; j++)
        printf("%s%" PRIu32, j ? "," : "", wb_indexer_position(choice, j));
    putchar(']');
}

static void print_indexer(const wb_route_model *m, const wb_record *r) {
    const uint32_t columns = wb_indexer_columns(m), start = r->indexer->start;
    printf(",\"indexer\":{\"start\":%" PRIu32 ",\"rows\":[", start);
    for (uint32_t t = 0; t < r->indexer->rows; t++) {
        printf(t ? ",[" : "[");
        for (uint32_t column = 0; column < columns; column++) {
            wb_indexer_choice choice = {0};
            if (column) putchar(',');
            (void)wb_indexer_at(m, r->indexer, start + t, column, &choice);
            print_choice(&choice);
        }
        putchar(']');
    }
    printf("]}");
}

static void print_record(const row_printer *p, const wb_route_model *m, const wb_record *r,
                         const cat_options *o) {
    printf("{\"rid\":");
    json_text(r->rid);
    printf(",\"group\":%" PRIu64 ",\"sample\":%" PRIu32 ",\"prompt_len\":%" PRIu32 ",\"n_tokens\":%" PRIu32
           ",\"finish\":\"%s\"",
           r->group, r->sample, r->prompt_len, r->n_tokens, wb_finish_name(r->finish));
    print_spans(r);
    if (r->sampling) print_sampling(r->sampling);
    if (o->tokens || o->json) print_tokens(r);
    if (o->routes || o->json) print_routes(p, m, r);
    if (r->indexer && (o->indexer || o->json)) print_indexer(m, r);
    printf("}\n");
}

static wb_status print_records(const row_printer *p, wb_dump *dump, uint64_t n, const cat_options *o) {
    cli_progress progress = cli_progress_start();
    wb_status status = WB_OK;
    uint64_t tokens = 0;
    for (uint64_t i = 0; i < n && status == WB_OK && !ferror(stdout); i++) {
        wb_record r;
        status = wb_dump_record(dump, i, &r);
        if (status != WB_OK) break;
        print_record(p, wb_dump_model(dump), &r, o);
        tokens += r.n_tokens;
        wb_dump_release(dump, i);
        cli_progress_records(&progress, i + 1, n, tokens);
    }
    cli_progress_end(&progress);
    return status;
}

static wb_status print_all(row_printer *p, wb_dump *dump, const cat_options *o) {
    const uint64_t n = wb_dump_get_info(dump).records;
    wb_record r;
    WB_TRY(open_rows(p, wb_dump_model(dump)));
    if (!o->rid) return print_records(p, dump, n < o->limit ? n : o->limit, o);
    WB_TRY(wb_dump_find(dump, o->rid, &r));
    print_record(p, wb_dump_model(dump), &r, o);
    return WB_OK;
}

static int run(const cli_command *self, const cli_arguments *arguments) {
    (void)self;
    wb_dump *dump = NULL;
    int code = cli_open_dump(arguments->dump, &dump);
    row_printer rows = {0};
    if (code == CLI_OK && print_all(&rows, dump, arguments->options) != WB_OK) code = cli_fail();
    wb_owner_close(&rows.memory);
    cli_close_dump(dump);
    return code;
}

const cli_command cli_cat = {
    .name = "cat",
    .summary = "records as JSON lines",
    .description = "Prints a JSON object a line for each record: rid, group, sample, prompt_len, n_tokens, "
                   "finish, spans; sampling where it is known; more with the options.",
    .options = table,
    .n_options = sizeof table / sizeof table[0],
    .options_size = sizeof(cat_options),
    .set_defaults = set_defaults,
    .run = run,
};
