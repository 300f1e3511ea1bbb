/* request.h - what a good request is. Refuses: a request's growth (sequence.c). */
#ifndef WB_REQUEST_H
#define WB_REQUEST_H

#include "cells.h"
#include "wb_rollout.h"

typedef struct wb_request_limits {
    const wb_route_model *route_model;
    int32_t vocab_size, max_positions; /* of the model */
    int32_t n_blocks, block_size;      /* of the KV pool */
    uint32_t n_columns;                /* where requests may ask for what indexers chose; else 0 */
    uint64_t max_unfinished, max_unfinished_tokens, max_unfinished_bytes; /* 0: no limit */
} wb_request_limits;

/* What requests come to, one or all that are unfinished. */
typedef struct wb_request_load {
    uint64_t n, tokens, bytes; /* tokens: at their longest; bytes: of the host */
} wb_request_load;

/* The caller's request over the defaults. */
wb_status wb_request_read(const wb_request *request, wb_request *request_out);

/* Tokens of its prompt, those of the record that it continues among them. */
static inline uint64_t wb_request_prompt_len(const wb_request *request) {
    return (uint64_t)request->n_tokens + (request->continues ? request->continues->n_tokens : 0);
}

/* How many of them, the first ones, were fed for the record that it continues. */
static inline uint32_t wb_request_n_fed(const wb_request *request) {
    const wb_record *record = request->continues;
    return record && record->n_spans > 0 ? record->spans[record->n_spans - 1].end : 0;
}

/* How many tokens its sampling mask can come to; 0: it has none. */
uint64_t wb_request_max_mask(const wb_request *request, int64_t vocab_size);

/* CAPACITY, with the numbers, where `request` makes the unfinished ones more than the limits allow. */
wb_status wb_request_check_load(const char *rid, const wb_request_load *unfinished,
                                const wb_request_load *request, const wb_request_limits *limits);

/* What wb_engine_submit refuses, but for a rid that is in use. */
wb_status wb_request_check(const wb_request *request, const wb_request_limits *limits);

#endif
