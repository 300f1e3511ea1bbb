/* make_golden_dumps.c - writes the golden dumps: files version 1 must decode for ever, and files it must
 * refuse. Not part of the tests: the files are committed, and test_dump.c and test_dump_bad.c say what
 * must come of them. Built with the tests' flags and run once:
 *
 *   make_golden_dumps tests/golden/dump
 *
 * A bad file is a good one with one thing wrong, its checksums right, so that the check meant is the one
 * met. */
#include "codec.h"
#include "dump_layout.h"
#include "dump_pack.h"
#include "formats/dump_fixture.h"
#include "packed.h"
#include "support/usage.h"
#include "wb_hash.h"
#include "wb_model.h"

#include <fcntl.h>
#include <math.h>

static void require(wb_status status) {
    if (status == WB_OK) return;
    fprintf(stderr, "make_golden_dumps: %s\n", wb_error_message());
    exit(1);
}

/* ---- good --------------------------------------------------------------------------------------- */

/* The records of golden() in test_dump.c. */
static void good(const char *path, uint32_t L, uint32_t E, uint32_t K, uint64_t seed, uint32_t n_tokens,
                 bool valid, bool sampled, const wb_dump_options *options) {
    const bool indexed = strstr(path, "indexer") != NULL;
    fixture_model f;
    fixture_model_init(&f, L, E, K);
    if (indexed) fixture_model_index(&f, 5);
    if (strstr(path, "indexer_rate")) f.model.indexer_rate = 3;
    if (strstr(path, "layers")) fixture_model_vary(&f, 3);
    fixture_rng rng = {seed};
    fixture_record records[3];
    wb_dump_writer *w = NULL;
    require(wb_dump_create(path, &f.model, options, &w));
    for (uint32_t i = 0; i < 3; i++) {
        char rid[32];
        snprintf(rid, sizeof rid, "golden-%u", i);
        fixture_record_init(&records[i], &f.model, &rng, rid, 5, n_tokens + i, i, 1 + i % 2, valid);
        records[i].record.group = 1;
        if (i > 0 && !valid) memcpy(records[i].ids, records[0].ids, 5 * wb_route_row_bytes(&f.model));
        if (sampled) fixture_record_sample(&records[i], &rng, i > 0);
        if (indexed) fixture_record_index(&records[i], &f.model, &rng, i);
        require(wb_dump_append(w, &records[i].record));
    }
    size_t size = 0;
    uint8_t *bytes = fixture_read_file(path, &size);
    require(wb_dump_finish(w));
    if (strstr(path, "no_index")) fixture_write_file(path, bytes, size);
    free(bytes);
    for (uint32_t i = 0; i < 3; i++) fixture_record_free(&records[i]);
}

/* A dump of the model of the golden answers, as it was written before headers had a rate: what its indexers
 * chose; and with `fewer` at the last position one entry less in the last layer. */
static void without_rate(const char *path, bool fewer) {
    uint32_t layers[WB_ROUTE_LISTS_MAX], vocab_size;
    wb_route_model model;
    fixture_record record;
    fixture_rng rng = {23};
    wb_dump_writer *w = NULL;
    require(wb_routes_of_folder(WB_TEST_DATA "/import/indexed", layers, &model, &vocab_size));
    fixture_record_init(&record, &model, &rng, "a", 5, 24, 0, 1, false);
    fixture_record_index(&record, &model, &rng, 0);
    const size_t last = (size_t)record.indexer.rows * wb_indexer_columns(&model) - 1;
    if (fewer && record.ends[last] > record.ends[last - 1]) record.ends[last]--;
    record.counts[last] -= fewer;
    model.indexer_rate = 0;
    require(wb_dump_create(path, &model, NULL, &w));
    require(wb_dump_append(w, &record.record));
    require(wb_dump_finish(w));
    fixture_record_free(&record);
}

/* ---- steps -------------------------------------------------------------------------------------- */

/* A record of step 0, whose rows go to experts 0..3 and mostly 0, or of step 1: to 4..7 and mostly 4. */
static void step_record(fixture_record *r, const wb_route_model *m, fixture_rng *rng, int rank, int step,
                        int sample, bool versions) {
    char rid[32];
    snprintf(rid, sizeof rid, "step%d-rank%d-%d", step, rank, sample);
    fixture_record_init(r, m, rng, rid, 5, 40, 0, 1, false);
    for (uint32_t i = 0; i < 39 * m->n_moe_layers; i++) {
        r->ids[2 * i] = (uint8_t)(4 * step);
        r->ids[2 * i + 1] = (uint8_t)(4 * step + 1 + i % 3);
    }
    r->spans[0] = (wb_span){0, 40, (uint64_t)(5 + 4 * step)};
    r->record.n_spans = versions;
}

/* Two steps of two ranks, one file a rank, and in the last a record that has neither routes nor logprobs.
 * With versions, the records of step s have weight version 5 + 4 s; else none is known. */
static void steps(const char *directory, bool versions) {
    fixture_model f;
    fixture_rng rng = {17};
    fixture_model_init(&f, 2, 8, 2);
    mkdir(directory, 0777);
    for (int rank = 0; rank < 2; rank++) {
        char path[640];
        wb_dump_writer *w = NULL;
        fixture_record r;
        snprintf(path, sizeof path, "%s/part-%d.wbr", directory, rank);
        require(wb_dump_create(path, &f.model, NULL, &w));
        for (int i = 0; i < 4 + rank; i++) {
            step_record(&r, &f.model, &rng, rank, i / 2 < 2 ? i / 2 : 1, i % 2 + (i == 4 ? 2 : 0), versions);
            if (i == 4) {
                r.record.n_routes = 0;
                r.record.logprobs = NULL;
            }
            require(wb_dump_append(w, &r.record));
            fixture_record_free(&r);
        }
        require(wb_dump_finish(w));
    }
}

/* Two requests of the same model that were ended early: one was never fed, of one every row is missing.
 * Neither has a version. */
static void unfed(const char *directory) {
    fixture_model f;
    fixture_rng rng = {18};
    char path[640];
    wb_dump_writer *w = NULL;
    fixture_model_init(&f, 2, 8, 2);
    mkdir(directory, 0777);
    snprintf(path, sizeof path, "%s/part-2.wbr", directory);
    require(wb_dump_create(path, &f.model, NULL, &w));
    for (uint32_t n_runs = 0; n_runs < 2; n_runs++) {
        fixture_record r;
        fixture_record_init(&r, &f.model, &rng, n_runs ? "rows-missing" : "never-fed", 5, 12, 0, n_runs,
                            true);
        memset(r.bits, 0, 2);
        r.record.n_spans = 0;
        require(wb_dump_append(w, &r.record));
        fixture_record_free(&r);
    }
    require(wb_dump_finish(w));
}

/* ---- bad ---------------------------------------------------------------------------------------- */

enum { L = 2, TOKENS = 6, ROWS = 5, BIG = 1 << 20 };

/* Which of the keys about sampling record "b" has, and what is wrong with it. Its 4 sampled tokens are 0. */
typedef enum sampling_fault {
    NO_SAMPLING,
    SAMPLING_HOT,
    SAMPLING_WITHOUT_TOP_P,
    SAMPLING_TEMPERATURE_TWICE,
    SAMPLING_LOGPROBS_SHORT,
    MASK_WITHOUT_ENDS,
    MASK_ENDS_SHORT,
    MASK_ENDS_BEYOND_IDS,
    MASK_ENDS_BEFORE_IDS_END,
    MASK_ENDS_BACK,
    MASK_EMPTY_SET,
    MASK_WITHOUT_TOKEN,
    MASK_IDS_TWICE,
    MASK_ID_TOO_LARGE,
    MASK_KEY_TWICE,
    DIGEST_OF_OTHER_TOKENS
} sampling_fault;

/* Whether the model has an indexer in layers 0 and 2, each its own, of at most 2 positions; and what is wrong
 * with it or with the rows of record "b": of positions 1 and 2, cells {0, 1}, {1}, {} and {0, 1}. */
typedef enum indexer_fault {
    NO_INDEXER,
    INDEXER_SOURCE_AFTER,
    INDEXER_SOURCES_SHORT,
    INDEXER_K_ZERO,
    INDEXER_KEY_TWICE,
    INDEXER_RATE_TYPE,
    INDEXER_RATE_COUNT,
    INDEXER_RATE_BEYOND,
    INDEXER_OF_NO_MODEL,
    INDEXER_WITHOUT_DATA,
    INDEXER_VALID,
    INDEXER_PACKED,
    INDEXER_CHECKSUM,
    INDEXER_CELL_MISSING,
    INDEXER_CELL_BEYOND,
    INDEXER_COUNT_BEYOND_DATA,
    INDEXER_NUMBER_TOO_LONG,
    INDEXER_COUNT_OVER_K,
    INDEXER_POSITION_BEYOND,
    INDEXER_ROWS_BEYOND,
    INDEXER_FRAME,
    INDEXER_BOMB
} indexer_fault;

/* What is wrong. Zero everywhere is a good file of two records, "a" and "b", of 6 tokens and 5 rows. */
typedef struct fault {
    const char *name;
    /* header */
    const char *format, *dtype;
    uint32_t version, E, K, layer_1;
    const char *top_k_list; /* instead of a number: the packed array */
    uint32_t weightless, weightless_times;
    bool header_damaged;
    /* record "b" */
    const char *rid, *finish, *codec, *prefix_rid, *drop_key, *twice_key;
    uint32_t prompt_len, logprobs, prefix_rows, start, rows, data_bytes, valid_bytes, run_2_start,
        span_2_start;
    uint8_t id_0, id_1; /* of the first layer of the first row, in place of 1 and 2 */
    sampling_fault sampling;
    indexer_fault indexer;
    bool prefix_rows_twice;
    bool ids_set, rows_damaged, record_damaged, base_has_prefix, base_invalid, spans_twice;
    const char *data;                /* instead of ids, data_bytes of it */
    uint32_t zstd_rows, packed_rows; /* instead of ids, so many rows of them encoded */
    /* index */
    int index_shift;
    const char *index_rid;
    bool index_short, index_damaged, trailer_damaged, no_index;
    /* a whole object between the records and the index, or where the header should be */
    const char *extra, *instead;
    size_t extra_size;
} fault;

static const char *or_text(const char *text, const char *normal) {
    return text ? text : normal;
}

static void indexer_of_header(wb_pack *p, indexer_fault x) {
    for (int times = 0; times <= (x == INDEXER_KEY_TWICE); times++) {
        const bool rate = x == INDEXER_RATE_TYPE || x == INDEXER_RATE_COUNT || x == INDEXER_RATE_BEYOND;
        wb_pack_text(p, "indexer");
        wb_pack_map(p, 3u + rate);
        wb_pack_text(p, "layers");
        wb_pack_array(p, 2);
        wb_pack_uint(p, 0);
        wb_pack_uint(p, 2);
        wb_pack_text(p, "k");
        wb_pack_uint(p, x == INDEXER_K_ZERO ? 0 : 2);
        wb_pack_text(p, "source");
        wb_pack_array(p, x == INDEXER_SOURCES_SHORT ? 1 : 2);
        wb_pack_uint(p, x == INDEXER_SOURCE_AFTER ? 2 : 0);
        if (x != INDEXER_SOURCES_SHORT) wb_pack_uint(p, 2);
        if (rate) wb_pack_text(p, "rate");
        if (x == INDEXER_RATE_TYPE) wb_pack_text(p, "2");
        if (x == INDEXER_RATE_COUNT || x == INDEXER_RATE_BEYOND) wb_pack_uint(p, 2);
    }
}

static void header(wb_pack *p, const fault *x) {
    uint32_t E = x->E ? x->E : 8;
    const bool indexed = x->indexer != NO_INDEXER && x->indexer != INDEXER_OF_NO_MODEL;
    wb_pack_map(p, 7);
    wb_pack_text(p, "format");
    wb_pack_text(p, or_text(x->format, WB_DUMP_FORMAT));
    wb_pack_text(p, "version");
    wb_pack_uint(p, x->version ? x->version : 1);
    wb_pack_text(p, "model");
    wb_pack_map(p, 7u + indexed + (x->indexer == INDEXER_KEY_TWICE) + x->weightless_times);
    wb_pack_text(p, "name");
    wb_pack_text(p, "test_moe");
    wb_pack_text(p, "fingerprint");
    wb_pack_text(p, "0123456789abcdef0123456789abcdef");
    wb_pack_text(p, "num_hidden_layers");
    wb_pack_uint(p, 3);
    wb_pack_text(p, "moe_layers");
    wb_pack_array(p, L);
    wb_pack_uint(p, 1);
    wb_pack_uint(p, x->layer_1 ? x->layer_1 : 2);
    wb_pack_text(p, "num_experts");
    wb_pack_uint(p, E);
    wb_pack_text(p, "top_k");
    if (x->top_k_list) /* The text's own end is a 0 that the list with an u8 needs. */
        wb_pack_bytes(p, x->top_k_list,
                      strlen(x->top_k_list) + (strlen(x->top_k_list) == 3 && x->top_k_list[2] == '\xcc'));
    else
        wb_pack_uint(p, x->K ? x->K : 2);
    for (uint32_t times = 0; times < x->weightless_times; times++) {
        wb_pack_text(p, "weightless");
        wb_pack_uint(p, x->weightless);
    }
    wb_pack_text(p, "router");
    wb_pack_text(p, "softmax_norm");
    if (indexed) indexer_of_header(p, x->indexer);
    wb_pack_text(p, "dtype");
    wb_pack_text(p, or_text(x->dtype, E <= 256 ? "u8" : "u16"));
    wb_pack_text(p, "created");
    wb_pack_uint(p, 1700000000);
    wb_pack_text(p, "producer");
    wb_pack_text(p, "make_golden_dumps");
    require(wb_pack_seal(p));
}

static uint8_t zeros[BIG];
static uint8_t ids[BIG];

static void run(wb_pack *p, const fault *x, uint32_t start, const uint8_t *data, size_t size) {
    uint32_t rows = x->rows ? x->rows : ROWS - start;
    wb_pack_map(p, x->valid_bytes ? 6 : 5);
    wb_pack_text(p, "start");
    wb_pack_uint(p, start);
    wb_pack_text(p, "rows");
    wb_pack_uint(p, rows);
    wb_pack_text(p, "codec");
    wb_pack_text(p, or_text(x->codec, "raw"));
    if (x->valid_bytes) {
        wb_pack_text(p, "valid");
        wb_pack_bin(p, zeros, x->valid_bytes, true);
    }
    wb_pack_text(p, "xxh3");
    wb_pack_uint64(p, wb_hash64(data, size) + x->rows_damaged);
    wb_pack_text(p, "data");
    wb_pack_bin(p, data, size, false);
}

static void routes(wb_pack *p, const fault *x, uint32_t start) {
    size_t size = x->data_bytes ? x->data_bytes : (ROWS - start) * 4u;
    const uint8_t *data = x->data ? (const uint8_t *)x->data : ids;
    for (size_t i = 0; i < BIG; i++) ids[i] = (uint8_t)(1 + i % 2);
    if (x->ids_set) {
        ids[0] = x->id_0;
        ids[1] = x->id_1;
    }
    static uint8_t frame[256];
    if (x->zstd_rows) {
        require(wb_zstd_encode(ids, x->zstd_rows * 4u, 3, frame, sizeof frame, &size));
        data = frame;
    }
    if (x->packed_rows) {
        fixture_model f;
        fixture_model_init(&f, 2, 8, 2);
        require(wb_packed_encode(&f.model, ids, x->packed_rows, NULL, 0, frame, sizeof frame, &size));
        data = frame;
    }
    wb_pack_text(p, "routes");
    if (x->run_2_start) wb_pack_array(p, 2);
    run(p, x, start, data, size);
    if (x->run_2_start) run(p, x, x->run_2_start, data, (ROWS - x->run_2_start) * 4u);
}

static bool dropped(const fault *x, const char *key) {
    return x->drop_key && strcmp(x->drop_key, key) == 0;
}

static void key_uint(wb_pack *p, const fault *x, const char *key, uint64_t value) {
    if (dropped(x, key)) return;
    wb_pack_text(p, key);
    wb_pack_uint(p, value);
}

static void spans(wb_pack *p, const fault *x) {
    wb_pack_text(p, "spans");
    wb_pack_array(p, 2);
    for (uint32_t i = 0; i < 2; i++) {
        wb_pack_array(p, 3);
        wb_pack_uint(p, i == 0 ? 0 : x->span_2_start ? x->span_2_start : 3);
        wb_pack_uint(p, i == 0 ? 3 : TOKENS);
        wb_pack_uint(p, 7);
    }
}

/* Kept tokens {0}, {0, 3}, {0}, {0, 5}. The pack borrows them until it is written. */
static void mask(wb_pack *p, sampling_fault x) {
    static uint32_t kept[6], ends[4];
    memcpy(kept, (const uint32_t[]){0, 0, 3, 0, 0, 5}, sizeof kept);
    memcpy(ends, (const uint32_t[]){1, 3, 4, 6}, sizeof ends);
    if (x == MASK_ENDS_BEYOND_IDS) ends[3] = 7;
    if (x == MASK_ENDS_BEFORE_IDS_END) ends[3] = 5;
    if (x == MASK_ENDS_BACK) ends[0] = 4;
    if (x == MASK_EMPTY_SET) ends[0] = 0;
    if (x == MASK_WITHOUT_TOKEN) kept[3] = 2;
    if (x == MASK_IDS_TWICE) kept[5] = 0;
    if (x == MASK_ID_TOO_LARGE) kept[5] = UINT32_C(1) << 31;
    wb_pack_text(p, "sampling_mask");
    wb_pack_map(p, x == MASK_WITHOUT_ENDS ? 1 : x == MASK_KEY_TWICE ? 3 : 2);
    for (int times = 0; times <= (x == MASK_KEY_TWICE); times++) {
        wb_pack_text(p, "ids");
        wb_pack_bin(p, kept, sizeof kept, true);
    }
    if (x == MASK_WITHOUT_ENDS) return;
    wb_pack_text(p, "ends");
    wb_pack_bin(p, ends, x == MASK_ENDS_SHORT ? 12 : 16, true);
}

/* One pair, unless there is no fault. */
static void sampling(wb_pack *p, sampling_fault x) {
    switch (x) {
    case NO_SAMPLING:
        break;
    case SAMPLING_HOT:
    case SAMPLING_WITHOUT_TOP_P:
    case SAMPLING_TEMPERATURE_TWICE:
        wb_pack_text(p, "sampling");
        wb_pack_map(p, x == SAMPLING_HOT ? 3 : x == SAMPLING_WITHOUT_TOP_P ? 2 : 4);
        for (int times = 0; times <= (x == SAMPLING_TEMPERATURE_TWICE); times++) {
            wb_pack_text(p, "temperature");
            wb_pack_float(p, x == SAMPLING_HOT ? INFINITY : 1);
        }
        wb_pack_text(p, "top_k");
        wb_pack_uint(p, 0);
        if (x == SAMPLING_WITHOUT_TOP_P) break;
        wb_pack_text(p, "top_p");
        wb_pack_float(p, 1);
        break;
    case SAMPLING_LOGPROBS_SHORT:
        wb_pack_text(p, "sampling_logprobs");
        wb_pack_bin(p, zeros, 12, true);
        break;
    case DIGEST_OF_OTHER_TOKENS:
        wb_pack_text(p, "digest");
        wb_pack_uint64(p, wb_hash64(zeros, TOKENS * 4 - 4));
        break;
    default:
        mask(p, x);
    }
}

/* The coded cells of a fault; their number goes to *size_out. */
static const uint8_t *indexer_cells(indexer_fault x, size_t *size_out) {
    static uint8_t frame[4096];
    switch (x) {
#define CELLS(text) (*size_out = sizeof(text) - 1, (const uint8_t *)(text))
    case INDEXER_CELL_MISSING:
        return CELLS("\x05\x02\x01\x01");
    case INDEXER_CELL_BEYOND:
        return CELLS("\x05\x02\x01\x01\x05\x01");
    case INDEXER_COUNT_BEYOND_DATA:
        return CELLS("\x05\x02\x01\x01\xfe\xff\xff\xff\x0f\x00");
    case INDEXER_NUMBER_TOO_LONG:
        return CELLS("\x05\x02\x01\x01\x85\x80\x80\x80\x80\x00");
    case INDEXER_COUNT_OVER_K:
        return CELLS("\x05\x02\x01\x01\x07");
    case INDEXER_POSITION_BEYOND:
        return CELLS("\x05\x02\x02\x01\x05");
    case INDEXER_RATE_COUNT:
        return CELLS("\x03\x03\x03\x01");
    case INDEXER_RATE_BEYOND:
        return CELLS("\x03\x02\x01\x03\x03");
    case INDEXER_FRAME:
        return CELLS("no frame at all");
    case INDEXER_BOMB:
        require(wb_zstd_encode(zeros, BIG, 3, frame, sizeof frame, size_out));
        return frame;
    default:
        return CELLS("\x05\x02\x01\x01\x05");
#undef CELLS
    }
}

static void indexer(wb_pack *p, indexer_fault x) {
    size_t size = 0;
    const uint8_t *cells = indexer_cells(x, &size);
    wb_pack_text(p, "indexer");
    wb_pack_map(p, x == INDEXER_WITHOUT_DATA ? 4 : x == INDEXER_VALID ? 6 : 5);
    wb_pack_text(p, "start");
    wb_pack_uint(p, x == INDEXER_ROWS_BEYOND ? 4 : 1);
    wb_pack_text(p, "rows");
    wb_pack_uint(p, 2);
    wb_pack_text(p, "codec");
    wb_pack_text(p, x == INDEXER_PACKED                       ? "packed"
                    : x == INDEXER_FRAME || x == INDEXER_BOMB ? "zstd"
                                                              : "raw");
    if (x == INDEXER_VALID) {
        wb_pack_text(p, "valid");
        wb_pack_bin(p, zeros, 1, true);
    }
    wb_pack_text(p, "xxh3");
    wb_pack_uint64(p, wb_hash64(cells, size) + (x == INDEXER_CHECKSUM));
    if (x == INDEXER_WITHOUT_DATA) return;
    wb_pack_text(p, "data");
    wb_pack_bin(p, cells, size, false);
}

static void record(wb_pack *p, const fault *x, const char *rid) {
    uint32_t prompt = x->prompt_len ? x->prompt_len : 2;
    wb_pack_map(p, 10u - (x->drop_key ? 1 : 0) + (x->twice_key ? 1 : 0) + (x->prefix_rid ? 1 : 0) +
                       x->spans_twice + (x->sampling != NO_SAMPLING ? 1 : 0) +
                       (x->indexer != NO_INDEXER ? 1 : 0));
    if (!dropped(x, "rid")) {
        wb_pack_text(p, "rid");
        wb_pack_text(p, or_text(x->rid, rid));
    }
    if (x->twice_key) key_uint(p, x, x->twice_key, 1);
    key_uint(p, x, "group", 0);
    key_uint(p, x, "sample", 0);
    key_uint(p, x, "prompt_len", prompt);
    if (!dropped(x, "tokens")) {
        wb_pack_text(p, "tokens");
        wb_pack_bin(p, zeros, TOKENS * 4, true);
    }
    wb_pack_text(p, "logprobs");
    wb_pack_bin(p, zeros, (x->logprobs ? x->logprobs : TOKENS - 2) * 4, true);
    if (!dropped(x, "finish")) {
        wb_pack_text(p, "finish");
        wb_pack_text(p, or_text(x->finish, "stop"));
    }
    for (int times = 0; times <= x->spans_twice; times++) spans(p, x);
    sampling(p, x->sampling);
    if (x->indexer != NO_INDEXER) indexer(p, x->indexer);
    if (x->prefix_rid) {
        wb_pack_text(p, "prefix");
        wb_pack_map(p, 2u + x->prefix_rows_twice);
        wb_pack_text(p, "rid");
        wb_pack_text(p, x->prefix_rid);
        for (int times = 0; times <= x->prefix_rows_twice; times++) {
            wb_pack_text(p, "rows");
            wb_pack_uint(p, x->prefix_rows);
        }
    }
    routes(p, x, x->start);
    if (dropped(x, "xxh3")) return;
    require(wb_pack_seal(p));
}

static void put(wb_pack *p, int fd, uint64_t *end, const char *path, bool damaged) {
    if (damaged) p->text[p->text_size - 1] ^= 1; /* the last byte of the checksum */
    require(wb_pack_write(p, fd, *end, path));
    *end += wb_pack_size(p);
    wb_pack_reset(p);
}

static void put_index(wb_pack *p, const fault *x, const uint64_t offsets[3], uint64_t at) {
    wb_pack_map(p, 2);
    wb_pack_text(p, "index");
    wb_pack_map(p, x->index_short ? 1 : x->base_has_prefix ? 3 : 2);
    wb_pack_text(p, "a");
    wb_pack_uint(p, offsets[0]);
    if (x->base_has_prefix) {
        wb_pack_text(p, "c");
        wb_pack_uint(p, offsets[2]);
    }
    if (!x->index_short) {
        wb_pack_text(p, or_text(x->index_rid, or_text(x->rid, "b")));
        wb_pack_uint(p, offsets[1] + (uint64_t)(int64_t)x->index_shift);
    }
    require(wb_pack_seal(p));
    uint8_t trailer[WB_TRAILER_BYTES];
    wb_trailer_fill(at, trailer);
    if (x->index_damaged) p->text[p->text_size - 1] ^= 1;
    if (x->trailer_damaged) trailer[20] ^= 1;
    wb_pack_bytes(p, trailer, sizeof trailer);
}

static void bad(const char *directory, const fault *x) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s.wbr", directory, x->name);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0666);
    if (fd < 0) {
        perror(path);
        exit(1);
    }
    wb_pack p;
    wb_pack_init(&p);
    uint64_t end = 0, offsets[3] = {0};
    fault good_record = {.start = 0};
    fault base = {.valid_bytes = x->base_invalid ? 1 : 0};
    fault middle = {.prefix_rid = "a", .prefix_rows = 2, .start = 2};
    if (x->instead)
        wb_pack_bytes(&p, x->instead, x->extra_size);
    else
        header(&p, x);
    put(&p, fd, &end, path, x->header_damaged);
    offsets[0] = end;
    if (!x->instead) record(&p, x->base_invalid ? &base : &good_record, "a");
    put(&p, fd, &end, path, false);
    offsets[2] = end;
    if (x->base_has_prefix) record(&p, &middle, "c");
    put(&p, fd, &end, path, false);
    offsets[1] = end;
    if (!x->instead) record(&p, x, "b");
    put(&p, fd, &end, path, x->record_damaged);
    if (x->extra) wb_pack_bytes(&p, x->extra, x->extra_size);
    put(&p, fd, &end, path, false);
    if (!x->instead && !x->no_index) put_index(&p, x, offsets, end);
    put(&p, fd, &end, path, false);
    wb_pack_free(&p);
    close(fd);
}

/* 17 arrays, one in another. */
#define DEEP "\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\xc0"

static const fault faults[] = {
    {.name = "bad_empty_file", .instead = "", .extra_size = 0},
    {.name = "bad_not_a_dump", .instead = "hello, this is text", .extra_size = 19},
    {.name = "bad_not_msgpack", .instead = "\xc1", .extra_size = 1},
    {.name = "bad_header_array32_count", .instead = "\xdd\xff\xff\xff\xff\x01", .extra_size = 6},
    {.name = "bad_header_map32_count", .instead = "\xdf\xff\xff\xff\xff\x01", .extra_size = 6},
    {.name = "bad_header_bin32_count", .instead = "\xc6\xff\xff\xff\xff\x01", .extra_size = 6},
    {.name = "bad_header_str32_count", .instead = "\xdb\xff\xff\xff\xff\x01", .extra_size = 6},
    {.name = "bad_header_deep", .instead = DEEP, .extra_size = 18},
    {.name = "bad_format", .format = "waybill.rotues"},
    {.name = "bad_version_2", .version = 2},
    {.name = "bad_dtype_u16_for_8_experts", .dtype = "u16"},
    {.name = "bad_dtype_unknown", .dtype = "u7"},
    {.name = "bad_experts_65537", .E = 65537},
    {.name = "bad_top_k_over_experts", .K = 9},
    {.name = "bad_layers_not_ascending", .layer_1 = 1},
    {.name = "bad_layer_beyond_model", .layer_1 = 3},
    {.name = "bad_top_k_list_short", .top_k_list = "\x91\x02"},
    {.name = "bad_top_k_list_zero", .top_k_list = "\x92\x02\xcc"},
    {.name = "bad_top_k_list_over_experts", .top_k_list = "\x92\x02\x09"},
    {.name = "bad_top_k_list_of_texts", .top_k_list = "\x92\x02\xa1K"},
    {.name = "bad_weightless_all", .weightless = 8, .weightless_times = 1},
    {.name = "bad_weightless_twice", .weightless = 1, .weightless_times = 2},
    {.name = "bad_header_checksum", .header_damaged = true},
    {.name = "bad_record_checksum", .record_damaged = true},
    {.name = "bad_rows_checksum", .rows_damaged = true},
    {.name = "bad_no_checksum", .drop_key = "xxh3"},
    {.name = "bad_key_missing", .drop_key = "sample"},
    {.name = "bad_key_twice", .twice_key = "group"},
    {.name = "bad_spans_twice", .spans_twice = true},
    {.name = "bad_rid_twice", .rid = "a"},
    {.name = "bad_rid_empty", .rid = ""},
    {.name = "bad_rid_not_utf8", .rid = "\xff"},
    {.name = "bad_finish", .finish = "bored"},
    {.name = "bad_prompt_beyond_tokens", .prompt_len = 7},
    {.name = "bad_logprobs_length", .logprobs = 5},
    {.name = "bad_spans_overlap", .span_2_start = 2},
    {.name = "bad_codec_unknown", .codec = "squeezed"},
    {.name = "bad_rows_beyond_tokens", .rows = 6, .data_bytes = 24},
    {.name = "bad_rows_more_than_data", .data_bytes = 16},
    {.name = "bad_runs_overlap", .run_2_start = 3},
    {.name = "bad_valid_length", .valid_bytes = 2},
    {.name = "bad_id_out_of_range", .ids_set = true, .id_0 = 8, .id_1 = 2},
    {.name = "bad_id_repeated", .ids_set = true, .id_0 = 5, .id_1 = 5},
    {.name = "bad_zstd_frame", .codec = "zstd", .data = "no frame at all", .data_bytes = 15},
    {.name = "bad_zstd_rows_missing", .codec = "zstd", .zstd_rows = 4},
    {.name = "bad_zstd_rows_beyond", .codec = "zstd", .zstd_rows = 6},
    {.name = "bad_packed_frame", .codec = "packed", .data = "no frame at all", .data_bytes = 15},
    {.name = "bad_packed_rows_missing", .codec = "packed", .packed_rows = 4},
    {.name = "bad_packed_rows_beyond", .codec = "packed", .packed_rows = 6},
    {.name = "bad_zstd_bomb",
     .codec = "zstd",
     .data = "\x28\xb5\x2f\xfd\x20",
     .data_bytes = 5,
     .rows = 0x30000000},
    {.name = "bad_prefix_unknown", .prefix_rid = "z", .prefix_rows = 2, .start = 2},
    {.name = "bad_prefix_itself", .prefix_rid = "b", .prefix_rows = 2, .start = 2},
    {.name = "bad_prefix_of_prefix",
     .prefix_rid = "c",
     .prefix_rows = 2,
     .start = 2,
     .base_has_prefix = true},
    {.name = "bad_prefix_too_long", .prefix_rid = "a", .prefix_rows = 3, .start = 2},
    {.name = "bad_prefix_not_valid", .prefix_rid = "a", .prefix_rows = 2, .start = 2, .base_invalid = true},
    {.name = "bad_sampling_temperature", .sampling = SAMPLING_HOT},
    {.name = "bad_sampling_key_missing", .sampling = SAMPLING_WITHOUT_TOP_P},
    {.name = "bad_sampling_logprobs_length", .sampling = SAMPLING_LOGPROBS_SHORT},
    {.name = "bad_mask_without_ends", .sampling = MASK_WITHOUT_ENDS},
    {.name = "bad_mask_ends_length", .sampling = MASK_ENDS_SHORT},
    {.name = "bad_mask_ends_beyond_ids", .sampling = MASK_ENDS_BEYOND_IDS},
    {.name = "bad_mask_ends_before_ids_end", .sampling = MASK_ENDS_BEFORE_IDS_END},
    {.name = "bad_mask_ends_back", .sampling = MASK_ENDS_BACK},
    {.name = "bad_mask_empty_set", .sampling = MASK_EMPTY_SET},
    {.name = "bad_mask_without_token", .sampling = MASK_WITHOUT_TOKEN},
    {.name = "bad_mask_ids_twice", .sampling = MASK_IDS_TWICE},
    {.name = "bad_mask_id_too_large", .sampling = MASK_ID_TOO_LARGE},
    {.name = "bad_sampling_key_twice", .sampling = SAMPLING_TEMPERATURE_TWICE},
    {.name = "bad_mask_key_twice", .sampling = MASK_KEY_TWICE},
    {.name = "bad_prefix_key_twice",
     .prefix_rid = "a",
     .prefix_rows = 2,
     .start = 2,
     .prefix_rows_twice = true},
    {.name = "bad_digest", .sampling = DIGEST_OF_OTHER_TOKENS},
    {.name = "bad_indexer_source_after", .indexer = INDEXER_SOURCE_AFTER},
    {.name = "bad_indexer_sources_short", .indexer = INDEXER_SOURCES_SHORT},
    {.name = "bad_indexer_k_zero", .indexer = INDEXER_K_ZERO},
    {.name = "bad_indexer_key_twice", .indexer = INDEXER_KEY_TWICE},
    {.name = "bad_indexer_rate_type", .indexer = INDEXER_RATE_TYPE},
    {.name = "bad_indexer_rate_count", .indexer = INDEXER_RATE_COUNT},
    {.name = "bad_indexer_rate_beyond", .indexer = INDEXER_RATE_BEYOND},
    {.name = "bad_indexer_of_no_model", .indexer = INDEXER_OF_NO_MODEL},
    {.name = "bad_indexer_without_data", .indexer = INDEXER_WITHOUT_DATA},
    {.name = "bad_indexer_valid", .indexer = INDEXER_VALID},
    {.name = "bad_indexer_packed", .indexer = INDEXER_PACKED},
    {.name = "bad_indexer_checksum", .indexer = INDEXER_CHECKSUM},
    {.name = "bad_indexer_cell_missing", .indexer = INDEXER_CELL_MISSING},
    {.name = "bad_indexer_cell_beyond", .indexer = INDEXER_CELL_BEYOND},
    {.name = "bad_indexer_count_beyond_data", .indexer = INDEXER_COUNT_BEYOND_DATA},
    {.name = "bad_indexer_number_too_long", .indexer = INDEXER_NUMBER_TOO_LONG},
    {.name = "bad_indexer_count_over_k", .indexer = INDEXER_COUNT_OVER_K},
    {.name = "bad_indexer_position_beyond", .indexer = INDEXER_POSITION_BEYOND},
    {.name = "bad_indexer_rows_beyond", .indexer = INDEXER_ROWS_BEYOND},
    {.name = "bad_indexer_frame", .indexer = INDEXER_FRAME},
    {.name = "bad_indexer_bomb", .indexer = INDEXER_BOMB},
    {.name = "bad_index_offset", .index_shift = 1},
    {.name = "bad_index_overlap", .index_shift = -200},
    {.name = "bad_index_rid", .index_rid = "x"},
    {.name = "bad_index_short", .index_short = true},
    {.name = "bad_index_checksum", .index_damaged = true},
    {.name = "bad_trailer", .trailer_damaged = true},
    {.name = "bad_object_between", .extra = "\xc0", .extra_size = 1},
    {.name = "bad_object_after", .extra = "\xc0", .extra_size = 1, .no_index = true},
    {.name = "bad_map_after", .extra = "\x80", .extra_size = 1, .no_index = true},
};

int main(int argc, char **argv) {
    int code;
    if (usage_ends(argc, argv, 1, 1, "usage: make_golden_dumps DIRECTORY\n", &code)) return code;
    char path[512];
    wb_dump_options zstd = wb_dump_options_default(), packed = zstd, chunks = zstd;
    zstd.codec = WB_CODEC_ZSTD;
    packed.codec = WB_CODEC_PACKED;
    chunks.chunk_bytes = 10;
#define GOOD(name, ...) (snprintf(path, sizeof path, "%s/%s", argv[1], name), good(path, __VA_ARGS__))
    GOOD("good_u8.wbr", 2, 8, 2, 11, 12, false, false, NULL);
    GOOD("good_u8_valid.wbr", 2, 256, 4, 12, 12, true, false, NULL);
    GOOD("good_u16.wbr", 2, 300, 2, 13, 12, false, false, NULL);
    GOOD("good_zstd.wbr", 2, 8, 2, 14, 100, false, false, &zstd);
    GOOD("good_packed.wbr", 2, 8, 2, 18, 100, true, false, &packed);
    GOOD("good_chunks.wbr", 2, 8, 2, 15, 12, true, false, &chunks);
    GOOD("good_no_index.wbr", 2, 8, 2, 16, 12, false, false, NULL);
    GOOD("good_sampling.wbr", 2, 8, 2, 17, 12, false, true, NULL);
    GOOD("good_indexer.wbr", 2, 8, 2, 19, 12, false, true, NULL);
    GOOD("good_indexer_zstd.wbr", 2, 8, 2, 20, 200, true, false, &zstd);
    GOOD("good_indexer_rate.wbr", 2, 8, 2, 22, 40, true, false, NULL);
    GOOD("good_layers_top_k.wbr", 3, 12, 4, 21, 40, true, false, &packed);
    snprintf(path, sizeof path, "%s/without_rate.wbr", argv[1]);
    without_rate(path, false);
    snprintf(path, sizeof path, "%s/without_rate_fewer.wbr", argv[1]);
    without_rate(path, true);
    snprintf(path, sizeof path, "%s/versions", argv[1]);
    steps(path, true);
    snprintf(path, sizeof path, "%s/files", argv[1]);
    steps(path, false);
    snprintf(path, sizeof path, "%s/unfed", argv[1]);
    unfed(path);
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) bad(argv[1], &faults[i]);
    return 0;
}
