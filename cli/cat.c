/* cat.c - `waybill cat`: records as JSON lines. */
#include "cli.h"

#include <inttypes.h>

typedef struct cat_options {
    const char *rid;
    bool tokens, routes;
    uint64_t limit;
} cat_options;

static void print_spans(const wb_record *r) {
    printf(",\"spans\":[");
    for (uint32_t i = 0; i < r->n_spans; i++)
        printf("%s[%" PRIu32 ",%" PRIu32 ",%" PRIu64 "]", i ? "," : "", r->spans[i].start, r->spans[i].end,
               r->spans[i].weight_version);
    printf("]");
}

static void print_tokens(const wb_record *r) {
    printf(",\"tokens\":[");
    for (uint32_t i = 0; i < r->n_tokens; i++) printf("%s%" PRIu32, i ? "," : "", r->tokens[i]);
    printf("],\"logprobs\":");
    if (!r->logprobs) {
        printf("null");
        return;
    }
    printf("[");
    for (uint32_t i = 0; i < r->n_tokens - r->prompt_len; i++) {
        if (i) putchar(',');
        cli_json_number(stdout, (double)r->logprobs[i]);
    }
    printf("]");
}

static void print_row(const wb_route_model *m, const void *row) {
    wb_dtype dtype = wb_route_dtype(m->num_experts);
    if (!row) {
        printf("null");
        return;
    }
    for (uint32_t l = 0; l < m->n_moe_layers; l++) {
        printf(l ? ",[" : "[[");
        for (uint32_t k = 0; k < m->top_k; k++)
            printf("%s%" PRIu32, k ? "," : "", wb_route_id(row, dtype, (size_t)l * m->top_k + k));
        putchar(']');
    }
    putchar(']');
}

static void print_routes(const wb_route_model *m, const wb_record *r) {
    printf(",\"routes\":[");
    for (uint32_t i = 0; i < r->n_routes; i++) {
        const wb_route_rows *run = &r->routes[i];
        printf("%s{\"start\":%" PRIu32 ",\"rows\":[", i ? "," : "", run->start);
        for (uint32_t t = 0; t < run->rows; t++) {
            if (t) putchar(',');
            print_row(m, wb_record_row(m, r, run->start + t));
        }
        printf("]}");
    }
    printf("]");
}

static void print_record(const wb_route_model *m, const wb_record *r, const cat_options *o) {
    printf("{\"rid\":");
    cli_json_text(stdout, r->rid);
    printf(",\"group\":%" PRIu64 ",\"sample\":%" PRIu32 ",\"prompt_len\":%" PRIu32 ",\"n_tokens\":%" PRIu32
           ",\"finish\":\"%s\"",
           r->group, r->sample, r->prompt_len, r->n_tokens, wb_finish_name(r->finish));
    print_spans(r);
    if (o->tokens) print_tokens(r);
    if (o->routes) print_routes(m, r);
    printf("}\n");
}

static int print_all(wb_dump *dump, const cat_options *o) {
    uint64_t n = wb_dump_get_info(dump).records;
    wb_record r;
    if (o->rid) {
        if (wb_dump_find(dump, o->rid, &r) != WB_OK) return cli_fail();
        print_record(wb_dump_model(dump), &r, o);
        return CLI_OK;
    }
    for (uint64_t i = 0; i < n && i < o->limit && !ferror(stdout); i++) {
        if (wb_dump_record(dump, i, &r) != WB_OK) return cli_fail();
        print_record(wb_dump_model(dump), &r, o);
        wb_dump_release(dump, i);
    }
    wb_dump_info info = wb_dump_get_info(dump);
    if (info.lost_bytes > 0)
        fprintf(stderr, "waybill: cut: %" PRIu64 " bytes are lost, first in %s\n", info.lost_bytes,
                info.lost_where);
    return CLI_OK;
}

int cli_cat(const cli_command *self, int argc, char **argv) {
    cat_options o = {.limit = UINT64_MAX};
    const cli_option options[] = {{.name = "rid", .text = &o.rid},
                                  {.name = "tokens", .flag = &o.tokens},
                                  {.name = "routes", .flag = &o.routes},
                                  {.name = "limit", .number = &o.limit},
                                  {0}};
    const char *path = NULL;
    int code;
    if (!cli_parse(self, argc, argv, options, &path, &code)) return code;
    wb_dump *dump = NULL;
    if (wb_dump_open(path, &dump) != WB_OK) return cli_fail();
    code = print_all(dump, &o);
    wb_dump_close(dump);
    return code;
}
