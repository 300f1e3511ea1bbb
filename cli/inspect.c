/* inspect.c - `waybill inspect`: what a dump says about itself, or one record. The summary reads no rows. */
#include "command.h"
#include "report/report_json.h"

#include <inttypes.h>
#include <stddef.h>
#include <string.h>

typedef struct inspect_options {
    const char *rid;
    bool json;
} inspect_options;

static const cli_option table[] = {
    {.name = "rid",
     .argument = "RID",
     .type = CLI_TEXT,
     .offset = offsetof(inspect_options, rid),
     .help = "one record in detail instead"},
    {.name = "json",
     .type = CLI_FLAG,
     .offset = offsetof(inspect_options, json),
     .help = "one JSON object instead, with the sums over all files"},
};

/* Sums over records; a file's are one contiguous range of them. */
typedef struct totals {
    uint64_t records, bytes, tokens, rows, row_bytes, shared_records, shared_rows;
    uint64_t indexer_rows, indexer_bytes;
    uint64_t of_codec[WB_CODEC_PACKED + 1]; /* records */
} totals;

static void add_entry(totals *t, const wb_dump_entry *e) {
    t->records++;
    t->bytes += e->bytes;
    t->tokens += e->n_tokens;
    t->rows += e->stored_rows;
    t->row_bytes += e->stored_row_bytes;
    t->shared_records += e->prefix_rid != NULL;
    t->shared_rows += e->prefix_rows;
    t->indexer_rows += e->stored_indexer_rows;
    t->indexer_bytes += e->stored_indexer_bytes;
    t->of_codec[e->codec]++;
}

static double ratio(uint64_t a, uint64_t b) {
    return b ? (double)a / (double)b : 0;
}

/* Hidden layers, of which list[i] names one, or, under MoE layers, its place among those. */
static void print_layers(const wb_route_model *m, const uint32_t *list, uint32_t n, bool among_moe) {
    for (uint32_t i = 0; i < n; i++)
        printf("%s%" PRIu32, i ? ", " : " ", among_moe ? m->moe_layers[list[i]] : list[i]);
}

/* Which layers have an indexer, and which of them ask another layer's. It chooses positions, which are those
 * of entries only where an entry stands for several tokens. */
static void print_indexers(const wb_route_model *m) {
    printf("indexers     up to %" PRIu32 " %s", m->indexer_k, m->indexer_rate > 1 ? "entries" : "positions");
    if (m->indexer_rate == 0) printf(" of an unknown number of tokens");
    if (m->indexer_rate > 1) printf(" of %" PRIu32 " tokens each", m->indexer_rate);
    printf(", of layers");
    print_layers(m, m->indexer_layers, m->n_indexer_layers, false);
    for (uint32_t i = 0; i < m->n_indexer_layers; i++)
        if (m->indexer_source[i] != m->indexer_layers[i])
            printf("; layer %" PRIu32 " uses that of %" PRIu32, m->indexer_layers[i], m->indexer_source[i]);
    printf("\n");
}

static void print_model(const wb_route_model *m) {
    printf("model        %s, router %s, fingerprint %s\n", m->name, m->router, m->fingerprint);
    printf("layers       %" PRIu32 " MoE layers of %" PRIu32 ": %" PRIu32 "..%" PRIu32 "\n", m->n_moe_layers,
           m->num_hidden_layers, m->moe_layers[0], m->moe_layers[m->n_moe_layers - 1]);
    printf("experts      ");
    for (uint32_t l = 0; m->layer_top_k && l < m->n_moe_layers; l++)
        printf("%s%" PRIu32, l ? ", " : "", m->layer_top_k[l]);
    if (!m->layer_top_k) printf("%" PRIu32, m->top_k);
    printf(" chosen of %" PRIu32, m->num_experts);
    if (m->n_weightless > 0) printf(", the last %" PRIu32 " without weights", m->n_weightless);
    printf(", %s: %zu bytes a row\n", wb_dtype_name(wb_route_dtype(m->num_experts)), wb_route_row_bytes(m));
    if (m->n_hash_layers > 0) {
        printf("hash         routed by a table of token ids: layers");
        print_layers(m, m->hash_layers, m->n_hash_layers, true);
        printf("\n");
    }
    if (m->n_indexer_layers > 0) print_indexers(m);
}

static void print_file(const char *name, const totals *t) {
    printf("  %-32s %8" PRIu64 " records %12" PRIu64 " tokens %14" PRIu64 " bytes\n", name, t->records,
           t->tokens, t->bytes);
}

/* Sums up all records, and prints a line for each file unless `quiet`. */
static int sum_records(wb_dump *dump, bool quiet, totals *all) {
    totals file = {0};
    const char *name = NULL;
    uint64_t n = wb_dump_get_info(dump).records;
    for (uint64_t i = 0; i < n; i++) {
        wb_dump_entry e;
        if (wb_dump_get_entry(dump, i, &e) != WB_OK) return cli_fail();
        if (name && strcmp(name, e.file) != 0) {
            if (!quiet) print_file(name, &file);
            file = (totals){0};
        }
        name = e.file;
        add_entry(&file, &e);
        add_entry(all, &e);
    }
    if (name && !quiet) print_file(name, &file);
    return CLI_OK;
}

/* What the rows of all routes take without a codec. */
static uint64_t raw_bytes(const wb_route_model *m, const totals *t) {
    return t->rows * wb_route_row_bytes(m);
}

/* The same of what indexers chose: a list of indexer_k positions of 4 bytes for each indexer and row. */
static uint64_t raw_indexer_bytes(const wb_route_model *m, const totals *t) {
    return t->indexer_rows * wb_indexer_columns(m) * m->indexer_k * 4;
}

static void print_totals(const wb_route_model *m, const wb_dump_info *info, const totals *t) {
    printf("records      %" PRIu64 " with %" PRIu64 " tokens, %" PRIu64 " bytes: %.1f bytes a token\n",
           t->records, t->tokens, info->bytes, ratio(info->bytes, t->tokens));
    printf("rows         %" PRIu64 " stored in %" PRIu64 " bytes: %.1f bytes a row, %.2f of raw\n", t->rows,
           t->row_bytes, ratio(t->row_bytes, t->rows), ratio(t->row_bytes, raw_bytes(m, t)));
    if (m->n_indexer_layers > 0)
        printf("indexer rows %" PRIu64 " stored in %" PRIu64
               " bytes: %.1f bytes a row, %.2f of lists of %" PRIu32 "\n",
               t->indexer_rows, t->indexer_bytes, ratio(t->indexer_bytes, t->indexer_rows),
               ratio(t->indexer_bytes, raw_indexer_bytes(m, t)), m->indexer_k);
    printf("codecs       raw in %" PRIu64 " records, zstd in %" PRIu64 ", packed in %" PRIu64 "\n",
           t->of_codec[WB_CODEC_RAW], t->of_codec[WB_CODEC_ZSTD], t->of_codec[WB_CODEC_PACKED]);
    printf("shared       %" PRIu64 " rows of prompts in %" PRIu64 " records are stored once\n",
           t->shared_rows, t->shared_records);
}

static void print_integrity(const wb_dump_info *info) {
    printf("integrity    ");
    if (info->files_without_index == 0)
        printf("every file has its index\n");
    else
        printf("%" PRIu64 " of %" PRIu64 " files have no whole index and were read from their begin\n",
               info->files_without_index, info->files);
    if (info->files_cut > 0)
        printf("lost         %" PRIu64 " bytes after the last whole record of %" PRIu64
               " files, first in %s\n",
               info->lost_bytes, info->files_cut, info->lost_where);
}

static void print_stored(const char *key, uint64_t rows, uint64_t bytes, uint64_t raw) {
    printf(",\"%s\":{\"rows\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"raw_bytes\":%" PRIu64 "}", key, rows, bytes,
           raw);
}

static int inspect_json(wb_dump *dump) {
    const wb_dump_info info = wb_dump_get_info(dump);
    const wb_route_model *m = wb_dump_model(dump);
    totals t = {0};
    const int code = sum_records(dump, true, &t);
    if (code != CLI_OK) return code;
    printf("{\"model\":");
    json_text(m->name);
    printf(",\"fingerprint\":");
    json_text(m->fingerprint);
    printf(",\"files\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"records\":%" PRIu64 ",\"tokens\":%" PRIu64,
           info.files, info.bytes, t.records, t.tokens);
    print_stored("routes", t.rows, t.row_bytes, raw_bytes(m, &t));
    if (m->n_indexer_layers > 0)
        print_stored("indexer", t.indexer_rows, t.indexer_bytes, raw_indexer_bytes(m, &t));
    printf(",\"codecs\":{");
    for (int c = WB_CODEC_RAW; c <= WB_CODEC_PACKED; c++)
        printf("%s\"%s\":%" PRIu64, c ? "," : "", wb_codec_name((wb_codec)c), t.of_codec[c]);
    printf("},\"shared\":{\"rows\":%" PRIu64 ",\"records\":%" PRIu64 "},\"files_without_index\":%" PRIu64
           ",\"files_cut\":%" PRIu64 ",\"lost_bytes\":%" PRIu64 "}\n",
           t.shared_rows, t.shared_records, info.files_without_index, info.files_cut, info.lost_bytes);
    return CLI_OK;
}

static int inspect_dump(wb_dump *dump, const char *path) {
    wb_dump_info info = wb_dump_get_info(dump);
    const wb_route_model *m = wb_dump_model(dump);
    totals all = {0};
    printf("dump         %s\n", path);
    print_model(m);
    printf("files        %" PRIu64 "\n", info.files);
    int code = sum_records(dump, false, &all);
    if (code != CLI_OK) return code;
    print_totals(m, &info, &all);
    print_integrity(&info);
    return CLI_OK;
}

static void print_record(const wb_record *r, const wb_dump_entry *e) {
    printf("rid          %s\n", r->rid);
    printf("group        %" PRIu64 ", sample %" PRIu32 "\n", r->group, r->sample);
    printf("tokens       %" PRIu32 ": prompt %" PRIu32 ", sampled %" PRIu32 " (%s logprobs), finish %s\n",
           r->n_tokens, r->prompt_len, r->n_tokens - r->prompt_len, r->logprobs ? "with" : "without",
           wb_finish_name(r->finish));
    for (uint32_t i = 0; i < r->n_spans; i++)
        printf("span         [%" PRIu32 ", %" PRIu32 ") under weight version %" PRIu64 "\n",
               r->spans[i].start, r->spans[i].end, r->spans[i].weight_version);
    for (uint32_t i = 0; i < r->n_routes; i++)
        printf("rows         %" PRIu32 " from position %" PRIu32 "%s\n", r->routes[i].rows,
               r->routes[i].start, i == 0 && e->prefix_rid ? " (shared)" : "");
    printf("valid        %" PRIu64 " rows of %" PRIu32 " that a whole record has\n", wb_record_count_rows(r),
           r->n_tokens ? r->n_tokens - 1 : 0);
    if (r->indexer)
        printf("indexers     %" PRIu32 " rows from position %" PRIu32 ", stored in %" PRIu64 " bytes\n",
               r->indexer->rows, r->indexer->start, e->stored_indexer_bytes);
    printf("stored       %s, byte %" PRIu64 ", %" PRIu64 " bytes; %" PRIu64 " rows in %" PRIu64
           " bytes, %s\n",
           e->file, e->offset, e->bytes, e->stored_rows, e->stored_row_bytes, wb_codec_name(e->codec));
    if (e->prefix_rid) printf("prefix       %" PRIu32 " rows of record %s\n", e->prefix_rows, e->prefix_rid);
}

static int inspect_record(wb_dump *dump, const char *rid) {
    uint64_t i = 0;
    wb_record r;
    wb_dump_entry e;
    if (wb_dump_index(dump, rid, &i) != WB_OK || wb_dump_record(dump, i, &r) != WB_OK ||
        wb_dump_get_entry(dump, i, &e) != WB_OK)
        return cli_fail();
    print_record(&r, &e);
    return CLI_OK;
}

static int run(const cli_command *self, const cli_arguments *arguments) {
    const inspect_options *o = arguments->options;
    wb_dump *dump = NULL;
    if (o->rid && o->json)
        return cli_usage_error(self, "--json is of a whole dump; a record is had with cat --rid RID --json");
    int code = cli_open_dump(arguments->dump, &dump);
    if (code == CLI_OK && o->json)
        code = inspect_json(dump);
    else if (code == CLI_OK)
        code = o->rid ? inspect_record(dump, o->rid) : inspect_dump(dump, arguments->dump);
    cli_close_dump(dump);
    return code;
}

const cli_command cli_inspect = {
    .name = "inspect",
    .summary = "what a dump holds: model, files, sizes, integrity",
    .description = "Prints the model, the files, the number and sizes of records, codecs, and whether files "
                   "were cut. DUMP is a .wbr file or a directory of them.",
    .options = table,
    .n_options = sizeof table / sizeof table[0],
    .options_size = sizeof(inspect_options),
    .run = run,
};
