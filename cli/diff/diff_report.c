/* diff_report.c - prints the numbers of `waybill diff` as tables or as JSON; see diff.h. Refuses: means of
 * nothing: a dash, or null. */
#include "diff/diff.h"
#include "report/report_json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

double diff_share(uint64_t part, uint64_t whole) {
    return whole ? (double)part / (double)whole : NAN;
}

double diff_mean(double sum, uint64_t n) {
    return n ? sum / (double)n : NAN;
}

double diff_overlap(const diff_sums *s, uint64_t width) {
    return s->rows ? (double)s->common / ((double)s->rows * (double)width) : NAN;
}

uint64_t diff_row_width(const diff *d) {
    return wb_route_row_ids(d->model);
}

uint64_t diff_bucket_from(int b) {
    return b == 0 ? 0 : (uint64_t)DIFF_FIRST_BOUND << (b - 1);
}

/* ---- tables ------------------------------------------------------------------------------------- */

/* A mean, or a share in percent, at the right of `width` columns. */
static void print_mean(int width, double mean) {
    if (isnan(mean))
        printf("%*s", width, "-");
    else
        printf("%*.6f", width, mean);
}

static void print_share(int width, double share) {
    if (isnan(share))
        printf("%*s", width, "-");
    else
        printf("%*.4f%%", width - 1, 100 * share);
}

static void print_ids(const char *name, const uint32_t *ids, uint32_t n) {
    printf(" %s", name);
    for (uint32_t k = 0; k < n; k++) printf(" %" PRIu32, ids[k]);
}

static void print_token(const char *name, const uint32_t *token) {
    if (token)
        print_ids(name, token, 1);
    else
        printf(" %s has ended", name);
}

static void print_first(const diff *d) {
    if (d->first_token.rid) {
        printf("first other token  record %s, position %" PRIu32 ":", d->first_token.rid,
               d->first_token.position);
        print_token("A", d->first_token.a);
        printf(",");
        print_token("B", d->first_token.b);
        printf("\n");
    }
    if (!d->first.rid) return;
    printf("first difference   record %s, position %" PRIu32 ", layer %" PRIu32 ":", d->first.rid,
           d->first.position, d->first.layer);
    print_ids("A", d->first.a, d->first.n);
    printf(",");
    print_ids("B", d->first.b, d->first.n);
    printf("\n");
}

static void print_kl(const char *name, const diff_kl *kl) {
    if (kl->tokens == 0) return;
    printf("%s  k1 %.6g, k3 %.6g nats, ratio outside [0.5, 2] %.4f%% of %" PRIu64 " tokens\n", name,
           diff_mean(kl->k1, kl->tokens), diff_mean(kl->k3, kl->tokens),
           100 * diff_share(kl->outside, kl->tokens), kl->tokens);
}

static void print_sums(const diff_sums *s, uint64_t width) {
    printf(" %12" PRIu64, s->rows);
    print_mean(12, diff_overlap(s, width));
    print_share(11, diff_share(s->same, s->rows));
    print_share(11, diff_share(s->exact, s->rows));
    printf("\n");
}

static void print_head(const char *name, const char *unit) {
    printf("\n%*s %12s %11s %10s %10s\n", name[0] == 'l' ? 6 : 23, name, unit, "overlap@K", "same set",
           "exact");
}

static void print_versions(const diff *d) {
    print_head("weights of A, B", "rows");
    for (size_t i = 0; i < d->n_versions; i++) {
        const diff_versions *v = &d->versions[i];
        char a[24] = "none", b[24] = "none";
        if (v->has_a) snprintf(a, sizeof a, "%" PRIu64, v->a);
        if (v->has_b) snprintf(b, sizeof b, "%" PRIu64, v->b);
        printf("%11s %11s", a, b);
        print_sums(&v->sums, diff_row_width(d));
    }
}

/* Nothing where neither dump says what indexers chose. */
static void print_indexers(const diff *d) {
    if (d->indexer_rows + d->indexer_only_a + d->indexer_only_b == 0) return;
    printf("\nindexers  %" PRIu64 " rows in both, %" PRIu64 " only in A, %" PRIu64 " only in B\n",
           d->indexer_rows, d->indexer_only_a, d->indexer_only_b);
    if (d->first_indexer.rid)
        printf("first other choice  record %s, position %" PRIu32 ", layer %" PRIu32 "\n",
               d->first_indexer.rid, d->first_indexer.position, d->first_indexer.layer);
    printf("%6s %12s %11s %10s\n", "layer", "rows", "overlap@K", "same set");
    for (uint32_t s = 0; s < d->n_indexers; s++) {
        const diff_indexer *sums = &d->indexers[s];
        printf("%6" PRIu32 " %12" PRIu64, diff_indexer_layer(d, s), sums->rows);
        print_mean(12, diff_mean(sums->overlap, sums->rows));
        print_share(11, diff_share(sums->same, sums->rows));
        printf("\n");
    }
}

static void print_routes(const diff *d) {
    print_head("layer", "rows");
    for (uint32_t l = 0; l < d->model->n_moe_layers; l++) {
        printf("%6" PRIu32, d->model->moe_layers[l]);
        print_sums(&d->layers[l], wb_route_layer_k(d->model, l));
    }
    print_head("positions", "rows");
    for (int b = 0; b < DIFF_N_BUCKETS; b++) {
        if (d->buckets[b].rows == 0) continue;
        printf("%11" PRIu64 "..%10" PRIu64, diff_bucket_from(b), diff_bucket_from(b + 1) - 1);
        print_sums(&d->buckets[b], diff_row_width(d));
    }
    print_versions(d);
}

void diff_print_tables(const diff *d) {
    printf("records  %" PRIu64 " in both, %" PRIu64 " only in A, %" PRIu64 " only in B; %" PRIu64
           " have the same tokens\n",
           d->both, d->only_a, d->only_b, d->same_tokens);
    printf("rows     %" PRIu64 " in both, %" PRIu64 " only in A, %" PRIu64 " only in B; %" PRIu64
           " after other tokens\n",
           d->all.rows, d->rows_only_a, d->rows_only_b, d->rows_not_compared);
    printf("overlap  ");
    print_mean(1, diff_overlap(&d->all, diff_row_width(d)));
    printf(" of A's choices are B's; rows of the same experts ");
    print_share(1, diff_share(d->all.same, d->all.rows));
    printf(", exact rows ");
    print_share(1, diff_share(d->all.exact, d->all.rows));
    printf("\n");
    print_kl("KL(A || B)                        ", &d->kl);
    print_kl("KL of the distributions sampled from", &d->kl_sampling);
    print_first(d);
    if (d->all.rows > 0) print_routes(d);
    print_indexers(d);
}

/* ---- JSON --------------------------------------------------------------------------------------- */

static void json_sums(const diff_sums *s, uint64_t width) {
    printf("\"rows\":%" PRIu64, s->rows);
    json_pair("overlap", diff_overlap(s, width));
    json_pair("same", diff_share(s->same, s->rows));
    json_pair("exact", diff_share(s->exact, s->rows));
}

static void json_kl(const char *key, const diff_kl *kl) {
    printf(",\"%s\":{\"tokens\":%" PRIu64, key, kl->tokens);
    json_pair("k1", diff_mean(kl->k1, kl->tokens));
    json_pair("k3", diff_mean(kl->k3, kl->tokens));
    json_pair("ratio_outside", diff_share(kl->outside, kl->tokens));
    printf("}");
}

static void json_ids(const char *key, const uint32_t *ids, uint32_t n) {
    printf(",\"%s\":[", key);
    for (uint32_t k = 0; k < n; k++) printf("%s%" PRIu32, k ? "," : "", ids[k]);
    printf("]");
}

/* A token of a record that has ended is null. */
static void json_token(const char *key, const uint32_t *token) {
    if (token)
        printf(",\"%s\":%" PRIu32, key, *token);
    else
        printf(",\"%s\":null", key);
}

static void json_first(const diff *d) {
    printf(",\"first_token_difference\":");
    if (d->first_token.rid) {
        printf("{\"rid\":");
        json_text(d->first_token.rid);
        printf(",\"position\":%" PRIu32, d->first_token.position);
        json_token("a", d->first_token.a);
        json_token("b", d->first_token.b);
    }
    printf(d->first_token.rid ? "},\"first_difference\":" : "null,\"first_difference\":");
    if (d->first.rid) {
        printf("{\"rid\":");
        json_text(d->first.rid);
        printf(",\"position\":%" PRIu32 ",\"layer\":%" PRIu32, d->first.position, d->first.layer);
        json_ids("a", d->first.a, d->first.n);
        json_ids("b", d->first.b, d->first.n);
    }
    printf(d->first.rid ? "}" : "null");
}

static void json_version(const char *key, bool known, uint64_t version) {
    printf("\"%s\":", key);
    if (known)
        printf("%" PRIu64 ",", version);
    else
        printf("null,");
}

static void json_tables(const diff *d) {
    printf(",\"layers\":[");
    for (uint32_t l = 0; l < d->model->n_moe_layers; l++) {
        printf("%s{\"layer\":%" PRIu32 ",", l ? "," : "", d->model->moe_layers[l]);
        json_sums(&d->layers[l], wb_route_layer_k(d->model, l));
        printf("}");
    }
    printf("],\"positions\":[");
    const char *comma = "";
    for (int b = 0; b < DIFF_N_BUCKETS; b++) {
        if (d->buckets[b].rows == 0) continue;
        printf("%s{\"from\":%" PRIu64 ",\"to\":%" PRIu64 ",", comma, diff_bucket_from(b),
               diff_bucket_from(b + 1));
        json_sums(&d->buckets[b], diff_row_width(d));
        printf("}");
        comma = ",";
    }
    printf("],\"versions\":[");
    for (size_t i = 0; i < d->n_versions; i++) {
        printf(i ? ",{" : "{");
        json_version("a", d->versions[i].has_a, d->versions[i].a);
        json_version("b", d->versions[i].has_b, d->versions[i].b);
        json_sums(&d->versions[i].sums, diff_row_width(d));
        printf("}");
    }
    printf("]");
}

/* For a model that has indexers. */
static void json_indexers(const diff *d) {
    if (d->n_indexers == 0) return;
    printf(",\"indexers\":{\"rows\":%" PRIu64 ",\"rows_only_a\":%" PRIu64 ",\"rows_only_b\":%" PRIu64
           ",\"first_difference\":",
           d->indexer_rows, d->indexer_only_a, d->indexer_only_b);
    if (d->first_indexer.rid) {
        printf("{\"rid\":");
        json_text(d->first_indexer.rid);
        printf(",\"position\":%" PRIu32 ",\"layer\":%" PRIu32 "}", d->first_indexer.position,
               d->first_indexer.layer);
    } else {
        printf("null");
    }
    printf(",\"layers\":[");
    for (uint32_t s = 0; s < d->n_indexers; s++) {
        const diff_indexer *sums = &d->indexers[s];
        printf("%s{\"layer\":%" PRIu32 ",\"rows\":%" PRIu64, s ? "," : "", diff_indexer_layer(d, s),
               sums->rows);
        json_pair("overlap", diff_mean(sums->overlap, sums->rows));
        json_pair("same", diff_share(sums->same, sums->rows));
        printf("}");
    }
    printf("]}");
}

void diff_print_json(const diff *d) {
    printf("{\"records\":{\"both\":%" PRIu64 ",\"only_a\":%" PRIu64 ",\"only_b\":%" PRIu64
           ",\"same_tokens\":%" PRIu64 "},\"rows_only_a\":%" PRIu64 ",\"rows_only_b\":%" PRIu64
           ",\"rows_not_compared\":%" PRIu64 ",",
           d->both, d->only_a, d->only_b, d->same_tokens, d->rows_only_a, d->rows_only_b,
           d->rows_not_compared);
    json_sums(&d->all, diff_row_width(d));
    json_kl("kl", &d->kl);
    json_kl("kl_sampling", &d->kl_sampling);
    json_first(d);
    json_tables(d);
    json_indexers(d);
    printf("}\n");
}
