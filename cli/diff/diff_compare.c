/* diff_compare.c - compares the records of two dumps, a pair at a time; see diff.h. */
#include "diff/diff.h"
#include "wb_check.h"
#include "wb_text.h"

#include <stdlib.h>
#include <string.h>

/* ---- places ------------------------------------------------------------------------------------- */

static wb_status note_place(diff *d, diff_place *place, const wb_record *r, uint32_t position, size_t n) {
    WB_TRY(WB_OWN(&d->memory, place->a, n, "a difference"));
    WB_TRY(WB_OWN(&d->memory, place->b, n, "a difference"));
    WB_TRY(WB_OWN(&d->memory, place->rid, strlen(r->rid) + 1, "a difference"));
    memcpy(place->rid, r->rid, strlen(r->rid));
    place->position = position;
    return WB_OK;
}

/* The first layer of two rows whose ids differ. */
static wb_status note_row(diff *d, const wb_record *r, uint32_t position, const uint8_t *a,
                          const uint8_t *b) {
    const wb_dtype dtype = wb_route_dtype(d->model->num_experts);
    uint32_t l = 0, K = 0;
    if (d->first.rid) return WB_OK;
    for (size_t bytes = 0;; l++, a += bytes, b += bytes) {
        K = wb_route_layer_k(d->model, l);
        bytes = K * wb_dtype_size(dtype);
        if (memcmp(a, b, bytes) != 0) break;
    }
    WB_TRY(note_place(d, &d->first, r, position, K));
    d->first.layer = d->model->moe_layers[l];
    d->first.n = K;
    for (uint32_t k = 0; k < K; k++) {
        d->first.a[k] = wb_route_id(a, dtype, k);
        d->first.b[k] = wb_route_id(b, dtype, k);
    }
    return WB_OK;
}

static wb_status note_token(diff *d, const wb_record *a, const wb_record *b, uint32_t position) {
    if (d->first_token.rid) return WB_OK;
    WB_TRY(note_place(d, &d->first_token, a, position, 1));
    if (position < a->n_tokens)
        *d->first_token.a = a->tokens[position];
    else
        d->first_token.a = NULL;
    if (position < b->n_tokens)
        *d->first_token.b = b->tokens[position];
    else
        d->first_token.b = NULL;
    return WB_OK;
}

/* ---- weight versions ---------------------------------------------------------------------------- */

/* The span of `r` that has the position, from *span on; n_spans when none has. */
static bool version_at(const wb_record *r, uint32_t position, uint32_t *span, uint64_t *version_out) {
    while (*span < r->n_spans && r->spans[*span].end <= position) ++*span;
    const bool has = *span < r->n_spans && r->spans[*span].start <= position;
    *version_out = has ? r->spans[*span].weight_version : 0;
    return has;
}

static bool same_versions(const diff_versions *x, const diff_versions *y) {
    return x->has_a == y->has_a && x->has_b == y->has_b && x->a == y->a && x->b == y->b;
}

/* The sums of a pair of versions, most often those of the row before. */
static wb_status sums_of(diff *d, diff_versions wanted, diff_sums **sums_out) {
    size_t i = d->latest;
    if (i >= d->n_versions || !same_versions(&d->versions[i], &wanted))
        for (i = 0; i < d->n_versions && !same_versions(&d->versions[i], &wanted);) i++;
    if (i == d->n_versions) {
        WB_TRY(WB_GROW(d->versions, i + 1, &d->versions_capacity, "pairs of weight versions"));
        d->versions[d->n_versions++] = wanted;
    }
    d->latest = i;
    *sums_out = &d->versions[i].sums;
    return WB_OK;
}

static int by_version(const void *left, const void *right) {
    const diff_versions *x = left, *y = right;
    if (x->has_a != y->has_a) return x->has_a ? 1 : -1;
    if (x->a != y->a) return x->a > y->a ? 1 : -1;
    if (x->has_b != y->has_b) return x->has_b ? 1 : -1;
    return (x->b > y->b) - (x->b < y->b);
}

/* ---- rows --------------------------------------------------------------------------------------- */

static void add_sums(diff_sums *to, diff_sums row) {
    to->rows += row.rows;
    to->exact += row.exact;
    to->same += row.same;
    to->common += row.common;
}

/* The sums of one row; those of its layers are added where they belong. */
static diff_sums compare_row(diff *d, const uint8_t *a, const uint8_t *b) {
    const wb_dtype dtype = wb_route_dtype(d->model->num_experts);
    diff_sums row = {.rows = 1, .exact = 1, .same = 1};
    size_t layer_bytes = 0;
    for (uint32_t l = 0; l < d->model->n_moe_layers; l++, a += layer_bytes, b += layer_bytes) {
        const uint32_t K = wb_route_layer_k(d->model, l);
        layer_bytes = K * wb_dtype_size(dtype);
        const uint32_t common = wb_route_common(a, b, dtype, K);
        const bool exact = memcmp(a, b, layer_bytes) == 0;
        add_sums(&d->layers[l], (diff_sums){1, exact, common == K, common});
        row.exact &= exact;
        row.same &= common == K;
        row.common += common;
    }
    return row;
}

static uint32_t bucket_of(uint32_t position) {
    uint32_t bucket = 0;
    for (uint64_t bound = DIFF_FIRST_BOUND; position >= bound; bound *= 2) bucket++;
    return bucket;
}

/* Rows at positions [0, n), whose tokens are the same in both. */
static wb_status compare_rows(diff *d, const wb_record *a, const wb_record *b, uint32_t n) {
    uint32_t span_a = 0, span_b = 0;
    for (uint32_t p = 0; p < n; p++) {
        const uint8_t *x = wb_record_row(d->model, a, p), *y = wb_record_row(d->model, b, p);
        d->rows_only_a += x && !y;
        d->rows_only_b += y && !x;
        if (!x || !y) continue;
        diff_versions pair = {0};
        diff_sums *versions = NULL;
        pair.has_a = version_at(a, p, &span_a, &pair.a);
        pair.has_b = version_at(b, p, &span_b, &pair.b);
        WB_TRY(sums_of(d, pair, &versions));
        const diff_sums row = compare_row(d, x, y);
        add_sums(&d->all, row);
        add_sums(&d->buckets[bucket_of(p)], row);
        add_sums(versions, row);
        if (!row.exact) WB_TRY(note_row(d, a, p, x, y));
    }
    return WB_OK;
}

static uint64_t rows_from(const wb_route_model *m, const wb_record *r, uint32_t position) {
    uint64_t rows = 0;
    for (wb_row_walk walk = wb_rows_of(m, r); wb_row_next(&walk);) rows += walk.position >= position;
    return rows;
}

/* ---- records ------------------------------------------------------------------------------------ */

static void add_kl(diff_kl *kl, float a, float b) {
    const wb_kl_terms terms = wb_kl_of_token(a, b);
    kl->tokens++;
    kl->k1 += terms.k1;
    kl->k3 += terms.k3;
    kl->outside += terms.outside;
}

/* Of the tokens below position n that both say to be sampled. */
static void compare_logprobs(diff *d, const wb_record *a, const wb_record *b, uint32_t n) {
    const uint32_t first = a->prompt_len > b->prompt_len ? a->prompt_len : b->prompt_len;
    for (uint32_t p = first; p < n; p++) {
        const uint32_t i = p - a->prompt_len, k = p - b->prompt_len;
        if (a->logprobs && b->logprobs) add_kl(&d->kl, a->logprobs[i], b->logprobs[k]);
        if (a->sampling_logprobs && b->sampling_logprobs)
            add_kl(&d->kl_sampling, a->sampling_logprobs[i], b->sampling_logprobs[k]);
    }
}

static wb_status compare_records(diff *d, const wb_record *a, const wb_record *b) {
    const uint32_t shorter = a->n_tokens < b->n_tokens ? a->n_tokens : b->n_tokens;
    uint32_t n = 0;
    while (n < shorter && a->tokens[n] == b->tokens[n]) n++;
    const bool same = n == a->n_tokens && n == b->n_tokens;
    d->both++;
    d->same_tokens += same;
    if (!same) {
        WB_TRY(note_token(d, a, b, n));
        d->rows_not_compared += rows_from(d->model, a, n) + rows_from(d->model, b, n);
    }
    compare_logprobs(d, a, b, n);
    WB_TRY(diff_compare_indexers(d, a, b, n));
    return compare_rows(d, a, b, n);
}

/* Record i of A and the one of B that has its rid, if there is one. */
static wb_status compare_pair(diff *d, wb_dump *a, uint64_t i, wb_dump *b) {
    wb_record mine, theirs;
    uint64_t k = 0;
    WB_TRY(wb_dump_record(a, i, &mine));
    wb_status status = wb_dump_index(b, mine.rid, &k);
    const bool found = status == WB_OK;
    if (status == WB_NOT_FOUND) {
        d->only_a++;
        status = WB_OK;
    }
    if (found) status = wb_dump_record(b, k, &theirs);
    if (found && status == WB_OK) {
        status = compare_records(d, &mine, &theirs);
        wb_dump_release(b, k);
    }
    wb_dump_release(a, i);
    return status;
}

static wb_status compare_dumps(wb_dump *a, wb_dump *b, diff *d, cli_progress *progress) {
    const uint64_t n = wb_dump_get_info(a).records;
    if (wb_route_model_match(d->model, wb_dump_model(b)) != WB_OK)
        return wb_fail_context(WB_MISMATCH, "A and B are of different models");
    WB_TRY(WB_OWN(&d->memory, d->layers, d->model->n_moe_layers, "sums of layers"));
    WB_TRY(diff_open_indexers(d));
    for (uint64_t i = 0; i < n; i++) {
        WB_TRY(compare_pair(d, a, i, b));
        cli_progress_records(progress, i + 1, n, 0);
    }
    d->only_b = wb_dump_get_info(b).records - d->both;
    if (d->n_versions > 1) qsort(d->versions, d->n_versions, sizeof *d->versions, by_version);
    return WB_OK;
}

int diff_compare(wb_dump *a, wb_dump *b, diff *d) {
    cli_progress progress = cli_progress_start();
    *d = (diff){.model = wb_dump_model(a)};
    const wb_status status = compare_dumps(a, b, d, &progress);
    cli_progress_end(&progress);
    return status == WB_OK ? CLI_OK : cli_fail();
}

void diff_close(diff *d) {
    free(d->versions);
    wb_owner_close(&d->memory);
}
