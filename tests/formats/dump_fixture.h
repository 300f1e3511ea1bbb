/* dump_fixture.h - models, random records and comparisons for the tests of the dump (header only).
 * Comparison is by position and exact: ids and validity bit for bit, logprobs as bit patterns. */
#ifndef DUMP_FIXTURE_H
#define DUMP_FIXTURE_H

#include "wb_formats.h"
#include "wb_random.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct fixture_rng {
    uint64_t state;
} fixture_rng;

/* Steps as splitmix64 does, not by one as wb_random: the golden dumps hold these numbers. */
static inline uint64_t fixture_next(fixture_rng *rng) {
    uint64_t number = wb_mix64(rng->state);
    rng->state += WB_RANDOM_STEP;
    return number;
}

static inline uint32_t fixture_below(fixture_rng *rng, uint32_t n) {
    return (uint32_t)(fixture_next(rng) % n);
}

/* A model of L MoE layers after one dense layer. */
typedef struct fixture_model {
    wb_route_model model;
    uint32_t layers[160], layer_top_k[160];
    uint32_t indexer_layers[3], indexer_source[3];
} fixture_model;

static inline void fixture_model_init(fixture_model *f, uint32_t L, uint32_t E, uint32_t K) {
    memset(f, 0, sizeof *f);
    for (uint32_t l = 0; l < L; l++) f->layers[l] = l + 1;
    f->model = (wb_route_model){.name = "test_moe",
                                .fingerprint = "0123456789abcdef0123456789abcdef",
                                .router = "softmax_norm",
                                .num_hidden_layers = L + 1,
                                .n_moe_layers = L,
                                .moe_layers = f->layers,
                                .num_experts = E,
                                .top_k = K};
}

/* Layer l chooses 1 + (l + 1) % K of the model's K; the last `weightless` experts have no weights. */
static inline void fixture_model_vary(fixture_model *f, uint32_t weightless) {
    for (uint32_t l = 0; l < f->model.n_moe_layers; l++) f->layer_top_k[l] = 1 + (l + 1) % f->model.top_k;
    f->layer_top_k[0] = f->model.top_k;
    f->model.layer_top_k = f->layer_top_k;
    f->model.n_weightless = weightless;
}

/* Gives the model of two MoE layers or more indexers of up to k positions: layers 0 and 2 have their own, and
 * layer 1 uses that of layer 0. */
static inline void fixture_model_index(fixture_model *f, uint32_t k) {
    for (uint32_t i = 0; i < 3; i++) f->indexer_layers[i] = i;
    memcpy(f->indexer_source, (const uint32_t[3]){0, 0, 2}, sizeof f->indexer_source);
    f->model.n_indexer_layers = 3;
    f->model.indexer_k = k;
    f->model.indexer_layers = f->indexer_layers;
    f->model.indexer_source = f->indexer_source;
}

/* A record that owns what it points to. */
typedef struct fixture_record {
    wb_record record;
    char rid[64];
    uint32_t *tokens;
    float *logprobs;
    wb_span spans[2];
    wb_route_rows routes[4];
    uint8_t *ids;
    uint8_t *bits;
    wb_sampling sampling;
    float *sampling_logprobs;
    uint32_t *mask_ids, *mask_ends;
    wb_indexer_rows indexer;
    uint32_t *counts, *positions;
    uint64_t *ends;
} fixture_record;

/* `rows` rows of K distinct ids a layer, from a random first one on. An odd step meets every expert once when
 * E is a power of two; for any other E the step is one. */
static inline void fixture_fill_ids(const wb_route_model *m, uint8_t *ids, size_t rows, fixture_rng *rng) {
    uint32_t E = m->num_experts;
    wb_dtype dtype = wb_route_dtype(E);
    size_t at = 0;
    for (size_t i = 0; i < rows * m->n_moe_layers; i++) {
        uint32_t first = fixture_below(rng, E), K = wb_route_layer_k(m, (uint32_t)(i % m->n_moe_layers));
        uint32_t step = (E & (E - 1)) == 0 ? 2 * fixture_below(rng, E) + 1 : 1;
        for (uint32_t k = 0; k < K; k++) wb_route_id_set(ids, dtype, at++, (first + k * step) % E);
    }
}

/* A record of `n_tokens` with `n_runs` (0..3) runs from position `start` on, gaps of one row between them;
 * `valid`: a random bitmap each. */
static inline void fixture_record_init(fixture_record *f, const wb_route_model *m, fixture_rng *rng,
                                       const char *rid, uint32_t prompt_len, uint32_t n_tokens,
                                       uint32_t start, uint32_t n_runs, bool valid) {
    memset(f, 0, sizeof *f);
    snprintf(f->rid, sizeof f->rid, "%s", rid);
    size_t row = wb_route_row_bytes(m);
    f->tokens = calloc(n_tokens + 1u, sizeof *f->tokens);
    f->logprobs = calloc(n_tokens - prompt_len + 1u, sizeof *f->logprobs);
    f->ids = calloc(n_tokens + 1u, row);
    f->bits = calloc(n_tokens / 8 + 8u, 4);
    if (!f->tokens || !f->logprobs || !f->ids || !f->bits) abort();
    for (uint32_t t = 0; t < n_tokens; t++) f->tokens[t] = (uint32_t)fixture_next(rng);
    for (uint32_t t = 0; t < n_tokens - prompt_len; t++)
        f->logprobs[t] = -(float)fixture_below(rng, 1000) / 128.0f;
    fixture_fill_ids(m, f->ids, n_tokens, rng);
    uint32_t limit = n_tokens > 0 ? n_tokens - 1 : 0, at = start < limit ? start : limit;
    uint8_t *bits = f->bits;
    for (uint32_t i = 0; i < n_runs; i++) {
        uint32_t rows = i + 1 == n_runs ? limit - at : (limit - at) / 2;
        for (uint32_t b = 0; b < (rows + 7) / 8; b++) bits[b] = (uint8_t)fixture_next(rng);
        f->routes[i] = (wb_route_rows){at, rows, f->ids + at * row, valid ? bits : NULL};
        bits += (rows + 7) / 8;
        at += rows;
        if (at < limit) at++;
    }
    uint32_t middle = n_tokens / 2;
    f->spans[0] = (wb_span){0, middle, 7};
    f->spans[1] = (wb_span){middle, n_tokens, 1ull << 40};
    f->record = (wb_record){.rid = f->rid,
                            .group = fixture_below(rng, 4),
                            .sample = fixture_below(rng, 16),
                            .prompt_len = prompt_len,
                            .n_tokens = n_tokens,
                            .tokens = n_tokens ? f->tokens : NULL,
                            .logprobs = f->logprobs,
                            .finish = (wb_finish)fixture_below(rng, 4),
                            .n_spans = n_tokens > 1 ? 2 : 0,
                            .spans = f->spans,
                            .n_routes = n_runs,
                            .routes = f->routes};
}

/* Says of a record how it was sampled: temperature 0.7, of the 4 likeliest tokens; with_mask: and which they
 * were, 1 to 4 of them at each sampled token. Its tokens become ones that an i32 holds. */
static inline void fixture_record_sample(fixture_record *f, fixture_rng *rng, bool with_mask) {
    wb_record *r = &f->record;
    const uint32_t n = r->n_tokens - r->prompt_len;
    f->sampling = (wb_sampling){0.7f, 4, 0.5f};
    f->sampling_logprobs = calloc(n + 1u, sizeof *f->sampling_logprobs);
    f->mask_ids = calloc(4 * n + 1u, sizeof *f->mask_ids);
    f->mask_ends = calloc(n + 1u, sizeof *f->mask_ends);
    if (!f->sampling_logprobs || !f->mask_ids || !f->mask_ends) abort();
    uint32_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t *token = &f->tokens[r->prompt_len + i], before = fixture_below(rng, 4), kept = 1 + before;
        *token = 8 + *token % 1000;
        f->sampling_logprobs[i] = -(float)fixture_below(rng, 1000) / 128.0f;
        if (before > 0) kept = before + fixture_below(rng, 2); /* the token is the last, or the one before */
        for (uint32_t k = 0; k < kept; k++) f->mask_ids[at++] = *token - before + k;
        if (kept == before) f->mask_ids[at - 1] = *token;
        f->mask_ends[i] = at;
    }
    r->sampling = &f->sampling;
    r->sampling_logprobs = f->sampling_logprobs;
    r->mask_ids = with_mask ? f->mask_ids : NULL;
    r->mask_ends = with_mask ? f->mask_ends : NULL;
}

/* Indexer rows of the record from `start` on: cells of nothing, of all of the first positions, stored
 * or not, and of some; as many as an indexer chooses where the model knows its rate. */
static inline void fixture_record_index(fixture_record *f, const wb_route_model *m, fixture_rng *rng,
                                        uint32_t start) {
    const uint32_t limit = f->record.n_tokens > 0 ? f->record.n_tokens - 1 : 0, S = wb_indexer_columns(m);
    const uint32_t first = start < limit ? start : limit;
    const size_t cells = (size_t)(limit - first) * S;
    uint64_t at = 0;
    f->counts = calloc(cells + 1, sizeof *f->counts);
    f->ends = calloc(cells + 1, sizeof *f->ends);
    f->positions = calloc(cells * m->indexer_k + 1, sizeof *f->positions);
    if (!f->counts || !f->ends || !f->positions) abort();
    for (size_t cell = 0; cell < cells; cell++) {
        const uint32_t position = first + (uint32_t)(cell / S), kind = fixture_below(rng, 4);
        const uint32_t seen = wb_indexer_seen(m, position), most = wb_indexer_count(m, position);
        const uint32_t some = kind == 0 ? fixture_below(rng, 2) : fixture_below(rng, most + 1);
        const uint32_t count = m->indexer_rate > 0 ? most : some;
        uint32_t spare = kind == 1 ? 0 : seen - count, next = 0;
        f->counts[cell] = count;
        for (uint32_t i = 0; kind != 3 && i < count; i++) {
            const uint32_t gap = fixture_below(rng, spare + 1);
            next += gap;
            spare -= gap;
            f->positions[at++] = next++;
        }
        f->ends[cell] = at;
    }
    f->indexer = (wb_indexer_rows){first, limit - first, f->counts, f->ends, f->positions};
    f->record.indexer = &f->indexer;
}

static inline void fixture_record_free(fixture_record *f) {
    free(f->counts);
    free(f->ends);
    free(f->positions);
    free(f->sampling_logprobs);
    free(f->mask_ids);
    free(f->mask_ends);
    free(f->tokens);
    free(f->logprobs);
    free(f->ids);
    free(f->bits);
}

static inline const char *fixture_sampling_difference(const wb_record *a, const wb_record *b) {
    const size_t n = a->n_tokens - a->prompt_len;
    if (!a->sampling != !b->sampling) return "presence of sampling";
    if (a->sampling && (memcmp(&a->sampling->temperature, &b->sampling->temperature, sizeof(float)) != 0 ||
                        memcmp(&a->sampling->top_p, &b->sampling->top_p, sizeof(float)) != 0 ||
                        a->sampling->top_k != b->sampling->top_k))
        return "sampling";
    if (!a->sampling_logprobs != !b->sampling_logprobs) return "presence of sampling_logprobs";
    if (n > 0 && a->sampling_logprobs &&
        memcmp(a->sampling_logprobs, b->sampling_logprobs, n * sizeof(float)) != 0)
        return "sampling_logprobs";
    if (!a->mask_ends != !b->mask_ends || !a->mask_ids != !b->mask_ids) return "presence of a mask";
    if (n == 0 || !a->mask_ends) return NULL;
    if (memcmp(a->mask_ends, b->mask_ends, n * sizeof(uint32_t)) != 0) return "ends of a mask";
    if (memcmp(a->mask_ids, b->mask_ids, a->mask_ends[n - 1] * sizeof(uint32_t)) != 0) return "ids of a mask";
    return NULL;
}

static inline const char *fixture_indexer_difference(const wb_route_model *m, const wb_record *a,
                                                     const wb_record *b) {
    if (!a->indexer != !b->indexer) return "presence of indexer rows";
    if (a->indexer && (a->indexer->start != b->indexer->start || a->indexer->rows != b->indexer->rows))
        return "start or number of indexer rows";
    for (uint32_t t = 0; a->indexer && t < a->n_tokens; t++)
        for (uint32_t column = 0; column < wb_indexer_columns(m); column++) {
            wb_indexer_choice x = {0}, y = {0};
            if (wb_indexer_at(m, a->indexer, t, column, &x) != wb_indexer_at(m, b->indexer, t, column, &y))
                return "presence of an indexer row";
            if (!wb_indexer_same(x, y)) return "an indexer's choice";
        }
    return NULL;
}

/* NULL when the records say the same, else what differs. */
static inline const char *fixture_difference(const wb_route_model *m, const wb_record *a,
                                             const wb_record *b) {
    if (strcmp(a->rid, b->rid) != 0) return "rid";
    if (a->group != b->group || a->sample != b->sample || a->finish != b->finish)
        return "group, sample or finish";
    if (a->prompt_len != b->prompt_len || a->n_tokens != b->n_tokens) return "lengths";
    if (a->n_tokens > 0 && memcmp(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens) != 0)
        return "tokens";
    if (!a->logprobs != !b->logprobs) return "presence of logprobs";
    size_t sampled = a->n_tokens - a->prompt_len;
    if (a->logprobs && sampled > 0 && memcmp(a->logprobs, b->logprobs, sampled * sizeof(float)) != 0)
        return "logprobs";
    if (a->n_spans != b->n_spans) return "number of spans";
    for (uint32_t i = 0; i < a->n_spans; i++)
        if (a->spans[i].start != b->spans[i].start || a->spans[i].end != b->spans[i].end ||
            a->spans[i].weight_version != b->spans[i].weight_version)
            return "spans";
    for (uint32_t t = 0; t < a->n_tokens; t++) {
        const void *x = wb_record_row(m, a, t), *y = wb_record_row(m, b, t);
        if (!x != !y) return "validity of a row";
        if (x && memcmp(x, y, wb_route_row_bytes(m)) != 0) return "ids of a row";
    }
    const char *sampling = fixture_sampling_difference(a, b);
    return sampling ? sampling : fixture_indexer_difference(m, a, b);
}

/* ---- files -------------------------------------------------------------------------------------- */

/* A new empty directory, in memory where the system has that: tests make thousands of files. Removed, with
 * the files in it, by fixture_remove. */
static inline void fixture_directory(char path[64]) {
    snprintf(path, 64, "%s/wb-test-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (!mkdtemp(path)) abort();
}

static inline void fixture_remove(const char *directory) {
    DIR *d = opendir(directory);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", directory, e->d_name);
        if (e->d_name[0] != '.') unlink(path);
    }
    closedir(d);
    rmdir(directory);
}

static inline uint8_t *fixture_read_file(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    struct stat info;
    if (!f || fstat(fileno(f), &info) != 0) abort();
    uint8_t *bytes = malloc((size_t)info.st_size + 1);
    *size = (size_t)info.st_size;
    if (!bytes || fread(bytes, 1, *size, f) != *size) abort();
    fclose(f);
    return bytes;
}

static inline void fixture_write_file(const char *path, const void *bytes, size_t size) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, size, f) != size || fclose(f) != 0) abort();
}

#endif
