/* route_laws.h - rows of routes to measure codecs with, of three laws: experts all alike, popular experts,
 * and a run as others measured it (header only).
 *
 * The last law is a router: a logit is the sum of how popular the expert is in its layer, how much the
 * request wants it (slowly drifting), what the last few tokens wanted, what this token wants, and noise; the
 * top K are chosen. Its weights were set so that rows are as was reported of Qwen3-30B-A3B while it decodes
 * (three prompts, 512 tokens each): 0.45 of a token's experts are the token before's, 0.80 are in the eight
 * before, and the 51 experts used latest hold 0.93. What they came out as, print_law() says of the first
 * two; the third was 0.93 too. They are not routes of that model. */
#ifndef ROUTE_LAWS_H
#define ROUTE_LAWS_H

#include "bench/bench_tools.h"

#include <string.h>

enum { LAW_E = 128, LAW_K = 8, LAW_TOKENS = 512 };

typedef enum route_law { LAW_UNIFORM, LAW_POPULAR, LAW_RUN, LAWS } route_law;

static const char *const law_names[LAWS] = {"uniform", "popular experts", "like a run"};

/* The K experts of the largest logits, descending. */
static inline void top_k(const float *logits, uint8_t *ids) {
    float best[LAW_K];
    int n = 0;
    for (int e = 0; e < LAW_E; e++) {
        int at = n < LAW_K ? n : LAW_K;
        if (at == LAW_K && logits[e] <= best[LAW_K - 1]) continue;
        if (at == LAW_K) at--;
        for (; at > 0 && best[at - 1] < logits[e]; at--) {
            best[at] = best[at - 1];
            ids[at] = ids[at - 1];
        }
        best[at] = logits[e];
        ids[at] = (uint8_t)e;
        if (n < LAW_K) n++;
    }
}

/* Nearly normal and cheap: of mean 0 and variance 1, from eight bytes. */
static inline float law_normal(uint64_t *state) {
    uint64_t x = wb_random(state);
    int sum = 0;
    for (int i = 0; i < 8; i++) sum += (int)(x >> 8 * i & 255);
    return ((float)sum - 1020) / 209.0f;
}

/* One layer of `rows` rows, `row_bytes` apart, of one request. */
static inline void law_layer(route_law law, uint64_t request, uint64_t layer, size_t rows, size_t row_bytes,
                             uint8_t *ids) {
    static float popular[LAW_E], slow[LAW_E], fast[LAW_E], token[LAW_TOKENS][LAW_E];
    uint64_t model = wb_mix64(layer + 1), own = wb_mix64(request * 1000 + layer), words = wb_mix64(request);
    for (int e = 0; e < LAW_E; e++) popular[e] = law == LAW_UNIFORM ? 0 : law_normal(&model);
    for (int t = 0; t < LAW_TOKENS; t++)
        for (int e = 0; e < LAW_E; e++) token[t][e] = law == LAW_RUN ? 0.6f * law_normal(&model) : 0;
    for (int e = 0; e < LAW_E; e++) slow[e] = law_normal(&own), fast[e] = law_normal(&own);
    /* A time of 3000 tokens, and one of 4; the layers in the middle are the steadier ones. */
    const float keep_slow = 0.99967f, keep_fast = 0.7788f, add_slow = 0.0258f, add_fast = 0.6273f;
    const float steady = 0.9f * (0.4f + 1.2f * sinf(3.14159f * (float)(layer % 48) / 47));
    for (size_t r = 0; r < rows; r++, ids += row_bytes) {
        float logits[LAW_E];
        /* Zipf's law: the n-th most frequent token as often as 1 / n. */
        int word = (int)pow(LAW_TOKENS, uniform(&words)) - 1;
        for (int e = 0; e < LAW_E; e++) {
            slow[e] = keep_slow * slow[e] + add_slow * law_normal(&own);
            fast[e] = keep_fast * fast[e] + add_fast * law_normal(&own);
            logits[e] = popular[e];
            if (law == LAW_RUN) logits[e] += slow[e] + steady * fast[e] + token[word][e];
            logits[e] += (law == LAW_RUN ? 0.6f : 1.0f) * law_normal(&own);
        }
        top_k(logits, ids);
    }
}

static inline void law_rows(route_law law, uint64_t request, size_t rows, size_t layers, uint8_t *ids) {
    for (size_t l = 0; l < layers; l++) law_layer(law, request, l, rows, layers * LAW_K, ids + l * LAW_K);
}

/* Of the experts of a layer: the share that is among those of the `n` rows before. */
static inline double law_share(const uint8_t *ids, size_t rows, size_t layers, size_t n) {
    size_t found = 0, total = 0, row_bytes = layers * LAW_K;
    for (size_t r = n; r < rows; r++)
        for (size_t i = 0; i < row_bytes; i++, total++)
            for (size_t back = 1; back <= n; back++) {
                const uint8_t *layer = ids + (r - back) * row_bytes + i / LAW_K * LAW_K;
                if (!memchr(layer, ids[r * row_bytes + i], LAW_K)) continue;
                found++;
                break;
            }
    return (double)found / (double)total;
}

static inline void print_law(route_law law, const uint8_t *ids, size_t rows, size_t layers) {
    printf("routes, %s: %.2f of a token's experts are the token before's, %.2f are in the eight before\n",
           law_names[law], law_share(ids, rows, layers, 1), law_share(ids, rows, layers, 8));
}

#endif
