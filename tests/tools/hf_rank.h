/* hf_rank.h - what one rank of hf_oracle has: its model, its part of the reference's sequences as a
 * training batch, tensors of routes, and what its checks have seen. Refuses: which passes are made
 * (hf_passes.h). */
#ifndef HF_RANK_H
#define HF_RANK_H

#include "tools/hf_reference.h"
#include "wb_comm.h"

#include <string.h>

typedef struct rank_run {
    const reference *ref;
    const char *save_dir; /* or NULL */
    wb_comm *comm;
    bool cuda;
    wb_device *device;
    wb_model *model;
    wb_train *train;
    int64_t n_seqs; /* sequences rank, rank + R, rank + 2R, ... of the reference */
    double plant;   /* part of the middle layer's weights that these are moved by; 0: none */
    bool keeps;     /* results become those of `ref` in place of being compared */
    bool is_noise;  /* ref's results are this model's own: its choices are forced */
    outcome outcomes[N_CHECKS];
    double bounds[N_CHECKS]; /* ref's, or those that noise gives */
    bool has_no_limit;       /* bf16: noise is above one of them */
    double loss;             /* this rank's part */
    int64_t n_tensors, n_tensors_expected;
    double last_gradient; /* the size of the one that was compared last */
    int verdict;          /* EXIT_PASS unless the run itself failed */
} rank_run;

static int64_t reference_seq(const rank_run *run, int64_t s) {
    return wb_comm_rank(run->comm) + s * wb_comm_size(run->comm);
}

/* Row of the reference's [B*length, ...] for this rank's token t of sequences of that length. */
static int64_t row_of(const rank_run *run, int64_t length, int64_t t) {
    return reference_seq(run, t / length) * length + t % length;
}

static int64_t reference_row(const rank_run *run, int64_t t) {
    return row_of(run, run->ref->S, t);
}

/* A route tensor [T][L][K] on the device and its ids as numbers. */
typedef struct routes {
    wb_device *device;
    wb_dtype dtype;
    int64_t n;
    void *device_ids, *host_ids;
} routes;

static wb_status routes_open(const rank_run *run, int64_t T, routes *r) {
    *r = (routes){.device = run->device, .dtype = wb_route_dtype((uint32_t)run->ref->E)};
    r->n = T * run->ref->L * run->ref->K;
    r->host_ids = allocate((size_t)r->n, sizeof(uint16_t));
    return run->device->mem_alloc(run->device, (size_t)r->n * sizeof(uint16_t), &r->device_ids);
}

static void routes_close(routes *r) {
    r->device->mem_free(r->device, r->device_ids);
    free(r->host_ids);
}

static int64_t routes_get(const routes *r, int64_t i) {
    return r->dtype == WB_U8 ? ((const uint8_t *)r->host_ids)[i] : ((const uint16_t *)r->host_ids)[i];
}

static void routes_set(routes *r, int64_t i, int64_t id) {
    if (r->dtype == WB_U8)
        ((uint8_t *)r->host_ids)[i] = (uint8_t)id;
    else
        ((uint16_t *)r->host_ids)[i] = (uint16_t)id;
}

static wb_status routes_download(routes *r) {
    return r->device->to_host(r->device, r->host_ids, r->device_ids, (size_t)r->n * wb_dtype_size(r->dtype));
}

static wb_status routes_upload(routes *r) {
    return r->device->to_device(r->device, r->device_ids, r->host_ids,
                                (size_t)r->n * wb_dtype_size(r->dtype));
}

/* This rank's sequences as a training batch, every next token a target. */
typedef struct packed {
    wb_train_batch batch;
    int32_t *tokens, *targets, *seq_start;
    float *logprobs, *logits;
} packed;

/* Of the reference's ids [B, length]. */
static packed pack(const rank_run *run, const int64_t *ids, int64_t length) {
    const int64_t T = run->n_seqs * length;
    packed p;
    p.tokens = allocate((size_t)T, sizeof(int32_t));
    p.targets = allocate((size_t)T, sizeof(int32_t));
    p.seq_start = allocate((size_t)run->n_seqs + 1, sizeof(int32_t));
    p.logprobs = allocate((size_t)T, sizeof(float));
    p.logits = allocate((size_t)(T * run->ref->V), sizeof(float));
    for (int64_t t = 0; t < T; t++) {
        const int64_t row = row_of(run, length, t);
        p.tokens[t] = (int32_t)ids[row];
        p.targets[t] = t % length == length - 1 ? -1 : (int32_t)ids[row + 1];
    }
    for (int64_t s = 0; s <= run->n_seqs; s++) p.seq_start[s] = (int32_t)(s * length);
    p.batch = (wb_train_batch){.T = T,
                               .tokens = p.tokens,
                               .targets = p.targets,
                               .n_seqs = (int32_t)run->n_seqs,
                               .seq_start = p.seq_start};
    return p;
}

static void unpack(packed *p) {
    free(p->tokens);
    free(p->targets);
    free(p->seq_start);
    free(p->logprobs);
    free(p->logits);
}

/* Compares, or keeps what was found. */
static void see_result(rank_run *run, check_id id, int64_t n, const float *found, float *expected) {
    if (run->keeps)
        memcpy(expected, found, (size_t)n * sizeof *found);
    else
        see_floats(&run->outcomes[id], n, found, expected);
}

static void compare_logits(rank_run *run, check_id id, const float *logits, float *expected) {
    const int64_t V = run->ref->V;
    for (int64_t t = 0; t < run->n_seqs * run->ref->S; t++)
        see_result(run, id, V, logits + t * V, expected + reference_row(run, t) * V);
}

#endif
