/* device_fault_core.h - what a device says of an id that is no expert's and of a token that no table has,
 * where it says it, and that it goes on afterwards: one test core for all backends, with whichever of these
 * ops a device has.
 *
 * A backend whose ops fail at once and one that tells at the next download must both name op, row, choice,
 * what was expected and what was found, in the same words, once. For plain programs: returns the number of
 * failures. */
#ifndef DEVICE_FAULT_CORE_H
#define DEVICE_FAULT_CORE_H

#include "wb_device.h"
#include "wb_random.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Tokens of one sequence that have lists of entries. */
enum { FAULT_TOKENS = 8, FAULT_RATIO = 2, FAULT_LISTED = 3 };
enum { FAULT_T = 301, FAULT_K = 5, FAULT_E = 37, FAULT_V = 11, FAULT_H = 8 };

typedef struct fault_test {
    wb_device *dev;
    uint64_t rng;
    int failures;
    /* device: one array each of what the ops take */
    void *ids, *logits, *weights, *dlogits, *table, *tokens, *places, *rows, *lists, *positions;
    wb_dtype dtype; /* of ids */
    wb_router router;
} fault_test;

static inline void fault_expect(fault_test *f, bool held, const char *what) {
    if (held) return;
    f->failures++;
    fprintf(stderr, "%s: expected %s; latest message: %s\n", wb_device_name(f->dev), what,
            wb_error_message());
}

static inline uint32_t fault_random(fault_test *f, uint32_t n) {
    return (uint32_t)(wb_random(&f->rng) % n);
}

static inline void *fault_array(fault_test *f, size_t bytes) {
    void *memory = NULL;
    fault_expect(f, wb_device_alloc(f->dev, bytes, &memory) == WB_OK, "memory");
    if (!memory) exit(1);
    return memory;
}

static inline void fault_put(fault_test *f, void *to, const void *from, size_t bytes) {
    fault_expect(f, wb_device_upload(f->dev, to, from, bytes) == WB_OK, "an upload");
}

/* ---- operands ------------------------------------------------------------------------------------ */

/* Good ones: ids below E, tokens below V, any finite logits. */
static inline void fault_fill(fault_test *f) {
    static uint16_t wide[FAULT_T * FAULT_K];
    static uint8_t narrow[FAULT_T * FAULT_K];
    static float floats[FAULT_T * FAULT_E];
    int32_t tokens[FAULT_T], table[FAULT_V * FAULT_K];
    for (int i = 0; i < FAULT_T * FAULT_K; i++)
        narrow[i] = (uint8_t)(wide[i] = (uint16_t)fault_random(f, FAULT_E));
    for (int i = 0; i < FAULT_T * FAULT_E; i++) floats[i] = wb_random_unit(wb_random(&f->rng));
    for (int i = 0; i < FAULT_T; i++) tokens[i] = (int32_t)fault_random(f, FAULT_V);
    for (int i = 0; i < FAULT_V * FAULT_K; i++) table[i] = (int32_t)fault_random(f, FAULT_E);
    fault_put(f, f->ids, f->dtype == WB_U8 ? (void *)narrow : wide,
              f->dtype == WB_U8 ? sizeof narrow : sizeof wide);
    fault_put(f, f->logits, floats, sizeof floats);
    fault_put(f, f->weights, floats, FAULT_T * FAULT_K * sizeof(float));
    fault_put(f, f->tokens, tokens, sizeof tokens);
    fault_put(f, f->table, table, sizeof table);
    int32_t lists[FAULT_TOKENS * FAULT_LISTED];
    for (int i = 0; i < FAULT_TOKENS * FAULT_LISTED; i++) lists[i] = -1;
    fault_put(f, f->lists, lists, sizeof lists);
}

static inline void fault_open(fault_test *f) {
    f->ids = fault_array(f, FAULT_T * FAULT_K * sizeof(uint16_t));
    f->logits = fault_array(f, FAULT_T * FAULT_E * sizeof(float));
    f->dlogits = fault_array(f, FAULT_T * FAULT_E * sizeof(float));
    f->weights = fault_array(f, FAULT_T * FAULT_K * sizeof(float));
    f->table = fault_array(f, FAULT_V * FAULT_K * sizeof(int32_t));
    f->tokens = fault_array(f, FAULT_T * sizeof(int32_t));
    f->places = fault_array(f, (2 * FAULT_T * FAULT_K + 2 * FAULT_E + 1) * sizeof(int32_t));
    f->rows = fault_array(f, (FAULT_T + FAULT_V) * FAULT_H * sizeof(float));
    f->lists = fault_array(f, FAULT_TOKENS * FAULT_LISTED * sizeof(int32_t));
    f->positions = fault_array(f, FAULT_TOKENS * sizeof(int32_t));
    int32_t positions[FAULT_TOKENS];
    for (int i = 0; i < FAULT_TOKENS; i++) positions[i] = i;
    fault_put(f, f->positions, positions, sizeof positions);
    const int32_t zeros[FAULT_E] = {0};
    const float floats[(FAULT_T + FAULT_V) * FAULT_H] = {0};
    fault_put(f, f->places, zeros, sizeof zeros);
    fault_put(f, f->rows, floats, sizeof floats);
}

static inline void fault_close(fault_test *f) {
    void *const arrays[] = {f->ids,    f->logits, f->dlogits, f->weights, f->table,
                            f->tokens, f->places, f->rows,    f->lists,   f->positions};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) wb_device_free(f->dev, arrays[i]);
}

/* Puts the element `at` of `array` to a value that no expert and no token has. */
static inline void fault_plant(fault_test *f, void *array, size_t size, int64_t at, int32_t value) {
    const uint8_t narrow = (uint8_t)value;
    const uint16_t wide = (uint16_t)value;
    const void *from = size == 1 ? (const void *)&narrow : size == 2 ? (const void *)&wide : &value;
    fault_put(f, (char *)array + (size_t)at * size, from, size);
}

/* ---- ops ----------------------------------------------------------------------------------------- */

static inline wb_ids fault_ids(const fault_test *f) {
    return (wb_ids){f->ids, f->dtype, FAULT_K};
}

static inline wb_status fault_gate(fault_test *f) {
    return f->dev->gate_forward(f->dev, &f->router, FAULT_T, f->logits, NULL, fault_ids(f), f->weights);
}

static inline wb_status fault_gate_backward(fault_test *f) {
    return f->dev->gate_backward(f->dev, &f->router, FAULT_T, f->logits, NULL, fault_ids(f), f->weights,
                                 f->dlogits);
}

/* The ids of `table`; the caller's are in the way of those of other ops, and are filled again. */
static inline wb_status fault_topk(fault_test *f) {
    const wb_topk args = {
        .router = {.type = WB_ROUTER_HASH, .n_experts = FAULT_E, .top_k = FAULT_K, .scale = 1},
        .T = FAULT_T,
        .logits = f->logits,
        .table = f->table,
        .tokens = f->tokens,
        .ids = fault_ids(f)};
    return f->dev->topk(f->dev, &args);
}

/* All experts on slot 0. */
static inline wb_status fault_plan(fault_test *f) {
    int32_t *at = f->places;
    const wb_moe_plan plan = {.T = FAULT_T,
                              .top_k = FAULT_K,
                              .n_experts = FAULT_E,
                              .n_slots = FAULT_E,
                              .rule = {.slot_of_expert = at},
                              .ids = fault_ids(f),
                              .offsets = at + FAULT_E,
                              .pair_row = at + 2 * FAULT_E + 1,
                              .row_token = at + 2 * FAULT_E + 1 + FAULT_T * FAULT_K};
    return f->dev->moe_plan(f->dev, &plan);
}

static inline wb_status fault_embed(fault_test *f) {
    const wb_weight table = {f->rows, WB_F32, FAULT_V, FAULT_H, false};
    return f->dev->embed_forward(f->dev, FAULT_T, f->tokens, table,
                                 wb_f32_rows((float *)f->rows + FAULT_V * FAULT_H));
}

/* Rows of zeros as queries, keys and entries. */
static inline wb_status fault_entries(fault_test *f) {
    const wb_rows rows = wb_f32_rows(f->rows);
    const wb_entry_attention args = {.raw = {.T = FAULT_TOKENS,
                                             .n_heads = 1,
                                             .n_kv_heads = 1,
                                             .head_dim = FAULT_H,
                                             .value_dim = FAULT_H,
                                             .scale = 1,
                                             .q = rows,
                                             .k = rows,
                                             .v = rows,
                                             .seq = f->places,
                                             .pos = f->positions,
                                             .blocks = f->positions,
                                             .max_blocks = FAULT_TOKENS,
                                             .block_size = 1},
                                     .entries = {FAULT_RATIO, rows, FAULT_H},
                                     .listed = f->lists,
                                     .max_listed = FAULT_LISTED};
    return f->dev->entry_attention_forward(f->dev, &args, wb_rows_from(rows, FAULT_TOKENS * FAULT_H));
}

/* The logits as rows of E tokens. */
static inline wb_status fault_sample(fault_test *f) {
    wb_sample_params params[FAULT_T];
    for (int i = 0; i < FAULT_T; i++) params[i] = (wb_sample_params){1, 0, 1, 0.5F};
    return f->dev->sample(f->dev, FAULT_T, FAULT_E, f->logits, params, NULL, f->tokens, f->dlogits);
}

/* ---- cases --------------------------------------------------------------------------------------- */

typedef wb_status fault_op(fault_test *f);

/* `op` is good, then finds what has been planted and says `text` once, from itself or from the next
 * download. */
static inline void fault_found(fault_test *f, fault_op *op, const char *text) {
    char host[16];
    const wb_status own = op(f);
    wb_status status = own;
    if (own == WB_OK) status = wb_device_download(f->dev, host, f->logits, sizeof host);
    fault_expect(f, status == WB_INVALID_ARGUMENT && strstr(wb_error_message(), text), text);
    fault_expect(f, wb_device_download(f->dev, host, f->logits, sizeof host) == WB_OK,
                 "nothing more afterwards");
    fault_fill(f);
    fault_expect(f, op(f) == WB_OK && wb_device_download(f->dev, host, f->logits, sizeof host) == WB_OK,
                 "an op that works again");
    fault_fill(f);
}

/* An id of a random choice that is E or more. */
static inline void fault_of_id(fault_test *f, const char *name, fault_op *op) {
    char text[128];
    const uint32_t row = fault_random(f, FAULT_T), choice = fault_random(f, FAULT_K),
                   id = FAULT_E + fault_random(f, 256 - FAULT_E);
    fault_plant(f, f->ids, wb_dtype_size(f->dtype), row * FAULT_K + choice, (int32_t)id);
    snprintf(text, sizeof text, "%s: ids: row %u, choice %u: expected an id below %d, found %u", name, row,
             choice, FAULT_E, id);
    fault_found(f, op, text);
}

static inline void fault_of_table(fault_test *f, int32_t id) {
    char text[128];
    const uint32_t token = fault_random(f, FAULT_V), choice = fault_random(f, FAULT_K);
    fault_plant(f, f->table, sizeof id, token * FAULT_K + choice, id);
    fault_plant(f, f->tokens, sizeof id, fault_random(f, FAULT_T), (int32_t)token);
    snprintf(text, sizeof text, "topk: table[%u][%u]: expected an id below %d, found %d", token, choice,
             FAULT_E, id);
    fault_found(f, fault_topk, text);
}

static inline void fault_of_token(fault_test *f, int32_t token) {
    char text[128];
    const uint32_t row = fault_random(f, FAULT_T);
    fault_plant(f, f->tokens, sizeof token, row, token);
    snprintf(text, sizeof text, "embed_forward: tokens: row %u: expected a token below %d, found %d", row,
             FAULT_V, token);
    fault_found(f, fault_embed, text);
}

/* A list that names an entry that its token does not see, or the same one twice, or one behind a -1. */
static inline void fault_of_entry(fault_test *f, bool twice, bool behind) {
    char text[128];
    const int32_t row = 3 + (int32_t)fault_random(f, FAULT_TOKENS - 3), seen = (row + 1) / FAULT_RATIO;
    const int32_t found =
        twice ? (int32_t)fault_random(f, (uint32_t)seen) : seen + (int32_t)fault_random(f, 5);
    const int place = behind ? FAULT_LISTED - 1 : twice;
    if (twice) fault_plant(f, f->lists, sizeof found, row * FAULT_LISTED, found);
    fault_plant(f, f->lists, sizeof found, row * FAULT_LISTED + place, found);
    snprintf(
        text, sizeof text,
        "entry_attention_forward: listed: row %d, place %d: expected ascending entries below %d, found %d",
        row, place, seen, found);
    fault_found(f, fault_entries, text);
}

/* In two rows, of which the first is told. */
static inline void fault_of_logits(fault_test *f) {
    char text[128];
    const uint32_t row = fault_random(f, FAULT_T - 1), later = row + 1 + fault_random(f, FAULT_T - 1 - row);
    const int32_t inf = 0x7f800000, nan = 0x7fc00000;
    fault_plant(f, f->logits, sizeof inf, later * FAULT_E + fault_random(f, FAULT_E), inf);
    fault_plant(f, f->logits, sizeof nan, row * FAULT_E + fault_random(f, FAULT_E), nan);
    snprintf(text, sizeof text, "sample: row %u: a logit is NaN or +inf, or all are -inf", row);
    fault_found(f, fault_sample, text);
}

/* Two faults before a download: the first is told, and none is left. */
static inline void fault_first_stays(fault_test *f) {
    char host[16];
    fault_plant(f, f->ids, wb_dtype_size(f->dtype), 7, FAULT_E);
    const wb_status first = fault_gate(f), second = fault_gate_backward(f);
    if (first == WB_OK) {
        fault_expect(f, second == WB_OK, "a backend that tells all at the download");
        fault_expect(f, wb_device_download(f->dev, host, f->logits, sizeof host) == WB_INVALID_ARGUMENT,
                     "a fault");
        fault_expect(f, strstr(wb_error_message(), "gate_forward: ids: row 1, choice 2"),
                     "the first of two faults");
    }
    fault_expect(f, wb_device_download(f->dev, host, f->logits, sizeof host) == WB_OK, "nothing more");
    fault_fill(f);
}

static inline int device_fault_run(wb_device *dev, uint64_t seed) {
    static const wb_router_type types[] = {WB_ROUTER_SOFTMAX, WB_ROUTER_SOFTMAX_NORM, WB_ROUTER_SIGMOID};
    fault_test f = {.dev = dev, .rng = seed};
    fault_open(&f);
    for (int i = 0; i < 6; i++) {
        f.router = (wb_router){.type = types[i % 3], .n_experts = FAULT_E, .top_k = FAULT_K, .scale = 1};
        f.dtype = i < 3 ? WB_U8 : WB_U16;
        fault_fill(&f);
        fault_of_id(&f, "gate_forward", fault_gate);
        fault_of_id(&f, "gate_backward", fault_gate_backward);
        fault_of_table(&f, FAULT_E + i);
        fault_of_table(&f, -1 - i);
        if (dev->moe_plan) fault_of_id(&f, "moe_plan", fault_plan);
        if (dev->sample) fault_of_logits(&f);
        if (dev->embed_forward) fault_of_token(&f, i % 2 ? FAULT_V : -1);
        if (dev->entry_attention_forward) fault_of_entry(&f, i % 3 > 0, i % 3 == 2);
        fault_first_stays(&f);
    }
    fault_close(&f);
    return f.failures;
}

#endif
