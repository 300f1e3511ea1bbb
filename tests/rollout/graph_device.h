/* graph_device.h - a CPU device with graphs: every op that a step of inference or a router calls is written
 * down with its arguments. Outside of a capture it is done as well; in one it is not, and a launch does what
 * was written down, with the arguments of then. So a launch is right only where the arguments of its step
 * would have been the same, and everything else that differs was read from memory. What a graph cannot hold,
 * a copy to or from the host or an allocation, aborts in a capture. Ranks are threads: each thread has such a
 * device. */
#ifndef GRAPH_DEVICE_H
#define GRAPH_DEVICE_H

#include "support/peer_ops.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GRAPH_CALLS = 512, GRAPH_PRODUCTS = 4, GRAPH_WORDS = 8, GRAPH_SAID = 80, GRAPH_MAX = 256 };

/* One call: whole structs of arguments, or words. `said`: all of its arguments, field by field, so that two
 * calls can be compared. */
typedef struct graph_call {
    wb_op op;
    uint64_t words[GRAPH_WORDS];
    float number;
    wb_rows rows[3];
    union {
        wb_matmul products[GRAPH_PRODUCTS];
        wb_attention attention;
        wb_attention_inputs inputs;
        wb_topk topk;
        wb_router router;
        wb_moe_plan plan;
        wb_grouped grouped;
        wb_weight weight;
        wb_route_check check;
        wb_peers peers;
    } args;
    wb_ids ids, to;
    int n_said;
    uint64_t said[GRAPH_SAID];
} graph_call;

typedef struct graph_log {
    int n;
    graph_call calls[GRAPH_CALLS];
} graph_log;

static _Thread_local struct {
    wb_device real; /* the ops of the CPU */
    graph_log *now; /* what is being written down; NULL: the device is not one with graphs */
    bool captures;
    graph_log *graphs[GRAPH_MAX]; /* that were captured and are not freed */
    int captured, launched, freed;
} graph;

static void graph_must(bool held, const char *what) {
    if (held) return;
    fprintf(stderr, "graph device: expected %s\n", what);
    abort();
}

/* ---- doing a call ---------------------------------------------------------------------------------- */

#define PTR(i) ((void *)(uintptr_t)c->words[i])
#define NUM(i) ((int64_t)c->words[i])

static wb_status graph_do(wb_device *dev, const graph_call *c) {
    const wb_device *real = &graph.real;
    switch (c->op) {
    case WB_OP_matmul:
        return real->matmul(dev, NUM(0), c->args.products);
    case WB_OP_embed_forward:
        return real->embed_forward(dev, NUM(0), PTR(1), c->args.weight, c->rows[0]);
    case WB_OP_rmsnorm_forward:
        return real->rmsnorm_forward(dev, NUM(0), NUM(1), c->rows[0], PTR(2), c->number, c->rows[1]);
    case WB_OP_add_rmsnorm:
        return real->add_rmsnorm(dev, NUM(0), NUM(1), c->rows[0], c->rows[1], PTR(2), c->number, c->rows[2]);
    case WB_OP_gather_rows:
        return real->gather_rows(dev, NUM(0), NUM(1), PTR(2), c->rows[0], c->rows[1]);
    case WB_OP_swiglu_forward:
        return real->swiglu_forward(dev, NUM(0), NUM(1), c->rows[0], c->rows[1]);
    case WB_OP_add:
        return real->add(dev, NUM(0), c->rows[0], c->rows[1]);
    case WB_OP_attention_prepare:
        return real->attention_prepare(dev, &c->args.inputs);
    case WB_OP_attention_forward:
        return real->attention_forward(dev, &c->args.attention, c->rows[0]);
    case WB_OP_topk:
        return real->topk(dev, &c->args.topk);
    case WB_OP_gate_forward:
        return real->gate_forward(dev, &c->args.router, NUM(0), PTR(1), PTR(2), c->ids, PTR(3));
    case WB_OP_gate_backward:
        return real->gate_backward(dev, &c->args.router, NUM(0), PTR(1), PTR(2), c->ids, PTR(3), PTR(4));
    case WB_OP_copy_ids:
        return real->copy_ids(dev, NUM(0), (int32_t)NUM(1), c->ids, c->to);
    case WB_OP_check_routes:
        return real->check_routes(dev, &c->args.check);
    case WB_OP_moe_plan:
        return real->moe_plan(dev, &c->args.plan);
    case WB_OP_grouped_matmul:
        return real->grouped_matmul(dev, &c->args.grouped, c->rows[0], c->rows[1], c->rows[2]);
    case WB_OP_moe_combine:
        return real->moe_combine(dev, NUM(0), (int32_t)NUM(1), NUM(2), c->rows[0], PTR(3), PTR(4),
                                 c->rows[1]);
    case WB_OP_peer_send:
        return real->peer_send(dev, &c->args.peers, NUM(0), PTR(1), PTR(2), c->rows[0]);
    case WB_OP_peer_receive:
        return real->peer_receive(dev, &c->args.peers, PTR(0), PTR(1));
    case WB_OP_peer_return:
        return real->peer_return(dev, &c->args.peers, NUM(0), PTR(1), PTR(2), c->rows[0]);
    case WB_OP_peer_wait:
        return real->peer_wait(dev, &c->args.peers);
    default:
        graph_must(false, "an op that it knows");
        return WB_OK;
    }
}

#undef PTR
#undef NUM

/* ---- what a call's arguments are ------------------------------------------------------------------- */

#define WORD(value) ((uint64_t)(value))
#define ADDRESS(pointer) ((uint64_t)(uintptr_t)(pointer))

static void graph_say(graph_call *c, const uint64_t *words, int n) {
    graph_must(c->n_said + n <= GRAPH_SAID, "fewer arguments");
    memcpy(c->said + c->n_said, words, (size_t)n * sizeof *words);
    c->n_said += n;
}
#define SAY(...)                                  \
    graph_say(c, (const uint64_t[]){__VA_ARGS__}, \
              (int)(sizeof((const uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t)))
#define ROWS(r) ADDRESS((r).data), WORD((r).dtype)
#define IDS(i) ADDRESS((i).data), WORD((i).dtype), WORD((i).stride)

static uint64_t graph_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static void graph_say_products(graph_call *c) {
    for (uint64_t i = 0; i < c->words[0]; i++) {
        const wb_matmul *m = &c->args.products[i];
        SAY(WORD(m->M), WORD(m->N), WORD(m->K), ROWS(m->a), WORD(m->a_row), WORD(m->a_col), ROWS(m->b));
        SAY(WORD(m->b_row), WORD(m->b_col), ROWS(m->c), WORD(m->ldc), WORD(m->accumulate));
    }
}

static void graph_say_attention(graph_call *c) {
    const wb_attention *a = &c->args.attention;
    SAY(WORD(a->T), WORD(a->n_heads), WORD(a->n_kv_heads), WORD(a->head_dim), WORD(a->value_dim));
    SAY(graph_bits(a->scale), WORD(a->window), ADDRESS(a->sinks));
    SAY(ROWS(a->q), ROWS(a->k), ROWS(a->v), ADDRESS(a->seq), ADDRESS(a->pos), ADDRESS(a->blocks));
    SAY(WORD(a->max_blocks), WORD(a->block_size));
}

static void graph_say_inputs(graph_call *c) {
    const wb_attention_inputs *a = &c->args.inputs;
    SAY(WORD(a->T), WORD(a->n_heads), WORD(a->n_kv_heads), WORD(a->head_dim), WORD(a->rot_dim));
    SAY(ROWS(a->q), ROWS(a->k), ROWS(a->v), ADDRESS(a->q_norm), ADDRESS(a->k_norm), WORD(a->norm_whole));
    SAY(graph_bits(a->eps), graph_bits(a->clip), ADDRESS(a->pos), ADDRESS(a->cos_table));
    SAY(ADDRESS(a->sin_table), ADDRESS(a->rows), ROWS(a->k_cache), ROWS(a->v_cache));
}

static void graph_say_router(graph_call *c, const wb_router *r) {
    SAY(WORD(r->type), WORD(r->n_experts), WORD(r->top_k), WORD(r->n_group), WORD(r->topk_group));
    SAY(WORD(r->normalize), graph_bits(r->scale));
}

static void graph_say_topk(graph_call *c) {
    const wb_topk *t = &c->args.topk;
    graph_say_router(c, &t->router);
    SAY(WORD(t->T), ADDRESS(t->logits), ADDRESS(t->bias), ADDRESS(t->table), ADDRESS(t->tokens));
    SAY(ADDRESS(t->direction), IDS(t->ids), ADDRESS(t->native.data));
}

static void graph_say_plan(graph_call *c) {
    const wb_moe_plan *p = &c->args.plan;
    SAY(WORD(p->T), WORD(p->top_k), WORD(p->n_experts), WORD(p->n_slots), ADDRESS(p->rule.slot_of_expert));
    SAY(ADDRESS(p->rule.replica_begin), ADDRESS(p->rule.replica_slots), WORD(p->rule.layer));
    SAY(ADDRESS(p->tokens), ADDRESS(p->pos), ADDRESS(p->direction), IDS(p->ids), ADDRESS(p->pair_row));
    SAY(ADDRESS(p->row_token), ADDRESS(p->offsets));
}

static void graph_say_grouped(graph_call *c) {
    const wb_grouped *g = &c->args.grouped;
    SAY(WORD(g->n_groups), ADDRESS(g->offsets), WORD(g->max_rows), ADDRESS(g->w.data), WORD(g->w.dtype));
    SAY(WORD(g->w.rows), WORD(g->w.cols), ADDRESS(g->gather), ROWS(g->gathered), WORD(g->y_is_scratch));
}

static void graph_say_peers(graph_call *c) {
    const wb_peers *p = &c->args.peers;
    SAY(WORD(p->rank), WORD(p->n_ranks), WORD(p->max_rows), WORD(p->width), WORD(p->dtype),
        graph_bits((float)p->timeout));
    for (int32_t r = 0; r < p->n_ranks; r++) SAY(ADDRESS(p->mailbox[r]), WORD(p->first_slot[r + 1]));
}

static void graph_say_all(graph_call *c) {
    SAY(WORD(c->op), graph_bits(c->number), IDS(c->ids), ROWS(c->rows[0]), ROWS(c->rows[1]),
        ROWS(c->rows[2]));
    graph_say(c, c->words, GRAPH_WORDS);
    if (c->op == WB_OP_matmul) graph_say_products(c);
    if (c->op == WB_OP_attention_forward) graph_say_attention(c);
    if (c->op == WB_OP_attention_prepare) graph_say_inputs(c);
    if (c->op == WB_OP_topk) graph_say_topk(c);
    if (c->op == WB_OP_gate_forward || c->op == WB_OP_gate_backward) graph_say_router(c, &c->args.router);
    if (c->op == WB_OP_moe_plan) graph_say_plan(c);
    if (c->op == WB_OP_grouped_matmul) graph_say_grouped(c);
    if (c->args.peers.n_ranks > 0 && c->op >= WB_OP_peer_send) graph_say_peers(c);
    if (c->op == WB_OP_embed_forward) SAY(ADDRESS(c->args.weight.data), WORD(c->args.weight.dtype));
}

/* Whether the two logs are of the same calls. */
static inline bool graph_same(const graph_log *a, const graph_log *b) {
    bool same = a->n == b->n;
    for (int i = 0; same && i < a->n; i++)
        same = a->calls[i].n_said == b->calls[i].n_said &&
               memcmp(a->calls[i].said, b->calls[i].said, (size_t)a->calls[i].n_said * sizeof(uint64_t)) == 0;
    return same;
}

#undef SAY
#undef ROWS
#undef IDS

/* Written down and, outside of a capture, done. */
static wb_status graph_take(wb_device *dev, graph_call *c) {
    graph_say_all(c);
    /* A step begins with its embedding. */
    if (c->op == WB_OP_embed_forward) graph.now->n = 0;
    graph_must(graph.now->n < GRAPH_CALLS, "fewer ops in a step");
    graph.now->calls[graph.now->n++] = *c;
    return graph.captures ? WB_OK : graph_do(dev, c);
}

/* ---- the ops --------------------------------------------------------------------------------------- */

static graph_call graph_blank(wb_op op) {
    graph_call c;
    memset(&c, 0, sizeof c);
    c.op = op;
    return c;
}

#define TAKE() graph_take(dev, &c)

static wb_status graph_matmul(wb_device *dev, int64_t count, const wb_matmul *list) {
    graph_call c = graph_blank(WB_OP_matmul);
    graph_must(count <= GRAPH_PRODUCTS, "fewer products");
    c.words[0] = WORD(count);
    memcpy(c.args.products, list, (size_t)count * sizeof *list);
    return TAKE();
}
static wb_status graph_embed(wb_device *dev, int64_t T, const int32_t *tokens, wb_weight table, wb_rows y) {
    graph_call c = graph_blank(WB_OP_embed_forward);
    c.words[0] = WORD(T), c.words[1] = ADDRESS(tokens), c.args.weight = table, c.rows[0] = y;
    return TAKE();
}
static wb_status graph_rmsnorm(wb_device *dev, int64_t n, int64_t width, wb_rows x, const float *w, float eps,
                               wb_rows y) {
    graph_call c = graph_blank(WB_OP_rmsnorm_forward);
    c.words[0] = WORD(n), c.words[1] = WORD(width), c.words[2] = ADDRESS(w);
    c.number = eps, c.rows[0] = x, c.rows[1] = y;
    return TAKE();
}
static wb_status graph_add_rmsnorm(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_rows y,
                                   const float *w, float eps, wb_rows normed) {
    graph_call c = graph_blank(WB_OP_add_rmsnorm);
    c.words[0] = WORD(n), c.words[1] = WORD(width), c.words[2] = ADDRESS(w);
    c.number = eps, c.rows[0] = x, c.rows[1] = y, c.rows[2] = normed;
    return TAKE();
}
static wb_status graph_gather(wb_device *dev, int64_t n, int64_t width, const int32_t *index, wb_rows in,
                              wb_rows out) {
    graph_call c = graph_blank(WB_OP_gather_rows);
    c.words[0] = WORD(n), c.words[1] = WORD(width), c.words[2] = ADDRESS(index);
    c.rows[0] = in, c.rows[1] = out;
    return TAKE();
}
static wb_status graph_swiglu(wb_device *dev, int64_t n, int64_t F, wb_rows gate_up, wb_rows out) {
    graph_call c = graph_blank(WB_OP_swiglu_forward);
    c.words[0] = WORD(n), c.words[1] = WORD(F), c.rows[0] = gate_up, c.rows[1] = out;
    return TAKE();
}
static wb_status graph_add(wb_device *dev, int64_t n, wb_rows x, wb_rows y) {
    graph_call c = graph_blank(WB_OP_add);
    c.words[0] = WORD(n), c.rows[0] = x, c.rows[1] = y;
    return TAKE();
}
static wb_status graph_prepare(wb_device *dev, const wb_attention_inputs *args) {
    graph_call c = graph_blank(WB_OP_attention_prepare);
    c.args.inputs = *args;
    return TAKE();
}
static wb_status graph_attention(wb_device *dev, const wb_attention *args, wb_rows out) {
    graph_call c = graph_blank(WB_OP_attention_forward);
    c.args.attention = *args, c.rows[0] = out;
    return TAKE();
}
static wb_status graph_topk(wb_device *dev, const wb_topk *args) {
    graph_call c = graph_blank(WB_OP_topk);
    c.args.topk = *args;
    return TAKE();
}
static wb_status graph_gate(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                            const uint8_t *direction, wb_ids ids, float *weights) {
    graph_call c = graph_blank(WB_OP_gate_forward);
    c.args.router = *router, c.ids = ids, c.words[0] = WORD(T), c.words[1] = ADDRESS(logits);
    c.words[2] = ADDRESS(direction), c.words[3] = ADDRESS(weights);
    return TAKE();
}
static wb_status graph_gate_backward(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                                     const uint8_t *direction, wb_ids ids, const float *dweights,
                                     float *dlogits) {
    graph_call c = graph_blank(WB_OP_gate_backward);
    c.args.router = *router, c.ids = ids, c.words[0] = WORD(T), c.words[1] = ADDRESS(logits);
    c.words[2] = ADDRESS(direction), c.words[3] = ADDRESS(dweights), c.words[4] = ADDRESS(dlogits);
    return TAKE();
}
static wb_status graph_copy_ids(wb_device *dev, int64_t T, int32_t K, wb_ids from, wb_ids to) {
    graph_call c = graph_blank(WB_OP_copy_ids);
    c.words[0] = WORD(T), c.words[1] = WORD(K), c.ids = from, c.to = to;
    return TAKE();
}
static wb_status graph_check_routes(wb_device *dev, const wb_route_check *check) {
    graph_call c = graph_blank(WB_OP_check_routes);
    c.args.check = *check;
    return TAKE();
}
static wb_status graph_plan(wb_device *dev, const wb_moe_plan *plan) {
    graph_call c = graph_blank(WB_OP_moe_plan);
    c.args.plan = *plan;
    return TAKE();
}
static wb_status graph_grouped(wb_device *dev, const wb_grouped *grouped, wb_rows x, wb_rows y, wb_rows act) {
    graph_call c = graph_blank(WB_OP_grouped_matmul);
    c.args.grouped = *grouped, c.rows[0] = x, c.rows[1] = y, c.rows[2] = act;
    return TAKE();
}
static wb_status graph_combine(wb_device *dev, int64_t T, int32_t K, int64_t H, wb_rows rows,
                               const int32_t *pair_row, const float *weights, wb_rows y) {
    graph_call c = graph_blank(WB_OP_moe_combine);
    c.words[0] = WORD(T), c.words[1] = WORD(K), c.words[2] = WORD(H), c.words[3] = ADDRESS(pair_row);
    c.words[4] = ADDRESS(weights), c.rows[0] = rows, c.rows[1] = y;
    return TAKE();
}

static wb_status graph_peer_send(wb_device *dev, const wb_peers *peers, int64_t n, const int32_t *row_token,
                                 const int32_t *offsets, wb_rows x) {
    graph_call c = graph_blank(WB_OP_peer_send);
    c.args.peers = *peers, c.rows[0] = x;
    c.words[0] = WORD(n), c.words[1] = ADDRESS(row_token), c.words[2] = ADDRESS(offsets);
    return TAKE();
}
static wb_status graph_peer_receive(wb_device *dev, const wb_peers *peers, int32_t *offsets, int32_t *place) {
    graph_call c = graph_blank(WB_OP_peer_receive);
    c.args.peers = *peers, c.words[0] = ADDRESS(offsets), c.words[1] = ADDRESS(place);
    return TAKE();
}
static wb_status graph_peer_return(wb_device *dev, const wb_peers *peers, int64_t n, const int32_t *offsets,
                                   const int32_t *place, wb_rows rows) {
    graph_call c = graph_blank(WB_OP_peer_return);
    c.args.peers = *peers, c.rows[0] = rows;
    c.words[0] = WORD(n), c.words[1] = ADDRESS(offsets), c.words[2] = ADDRESS(place);
    return TAKE();
}
static wb_status graph_peer_wait(wb_device *dev, const wb_peers *peers) {
    graph_call c = graph_blank(WB_OP_peer_wait);
    c.args.peers = *peers;
    return TAKE();
}

/* ---- what a graph cannot hold ---------------------------------------------------------------------- */

static wb_status graph_to_host(wb_device *dev, void *host, const void *device, size_t bytes) {
    graph_must(!graph.captures, "no to_host in a capture");
    return graph.real.to_host(dev, host, device, bytes);
}
static wb_status graph_to_device(wb_device *dev, void *device, const void *host, size_t bytes) {
    graph_must(!graph.captures, "no to_device in a capture");
    return graph.real.to_device(dev, device, host, bytes);
}
static wb_status graph_mem_alloc(wb_device *dev, size_t bytes, void **device_out) {
    graph_must(!graph.captures, "no mem_alloc in a capture");
    return graph.real.mem_alloc(dev, bytes, device_out);
}
static wb_status graph_copy(wb_device *dev, void *to, const void *from, size_t bytes) {
    graph_must(!graph.captures, "no copy in a capture of this test's models");
    return graph.real.copy(dev, to, from, bytes);
}
static wb_status graph_zero(wb_device *dev, void *device, size_t bytes) {
    graph_must(!graph.captures, "no zero in a capture of this test's models");
    return graph.real.zero(dev, device, bytes);
}

/* ---- graphs ---------------------------------------------------------------------------------------- */

static wb_status graph_begin(wb_device *dev) {
    (void)dev;
    graph_must(!graph.captures, "one capture at a time");
    graph.captures = true;
    graph.now->n = 0;
    return WB_OK;
}

static wb_status graph_end(wb_device *dev, void **graph_out) {
    (void)dev;
    graph_must(graph.captures && graph.captured < GRAPH_MAX, "a capture");
    graph.captures = false;
    graph_log *log = malloc(sizeof *log);
    graph_must(log != NULL, "memory");
    *log = *graph.now;
    graph.graphs[graph.captured++] = log;
    graph.now->n = 0;
    *graph_out = log;
    return WB_OK;
}

static wb_status graph_launch(wb_device *dev, void *handle) {
    const graph_log *log = handle;
    graph_must(!graph.captures, "a launch outside of a capture");
    graph.launched++;
    for (int i = 0; i < log->n; i++) {
        const wb_status status = graph_do(dev, &log->calls[i]);
        if (status != WB_OK) return status;
    }
    return WB_OK;
}

static void graph_free(wb_device *dev, void *handle) {
    (void)dev;
    if (!handle) return;
    graph.freed++;
    free(handle);
}

/* Before anything is opened on `dev`. */
static void graph_device_make(wb_device *dev) {
    memset(&graph, 0, sizeof graph);
    peer_ops_give(dev);
    graph.real = *dev;
    graph.now = calloc(1, sizeof *graph.now);
    graph_must(graph.now != NULL, "memory");
    dev->matmul = graph_matmul, dev->embed_forward = graph_embed, dev->rmsnorm_forward = graph_rmsnorm;
    dev->add_rmsnorm = graph_add_rmsnorm, dev->gather_rows = graph_gather, dev->swiglu_forward = graph_swiglu;
    dev->add = graph_add, dev->attention_prepare = graph_prepare, dev->attention_forward = graph_attention;
    dev->topk = graph_topk, dev->gate_forward = graph_gate, dev->moe_plan = graph_plan;
    dev->gate_backward = graph_gate_backward, dev->copy_ids = graph_copy_ids;
    dev->check_routes = graph_check_routes;
    dev->grouped_matmul = graph_grouped, dev->moe_combine = graph_combine;
    dev->peer_send = graph_peer_send, dev->peer_receive = graph_peer_receive;
    dev->peer_return = graph_peer_return, dev->peer_wait = graph_peer_wait;
    dev->to_host = graph_to_host, dev->to_device = graph_to_device, dev->mem_alloc = graph_mem_alloc;
    dev->copy = graph_copy, dev->zero = graph_zero;
    dev->graph_begin = graph_begin, dev->graph_end = graph_end;
    dev->graph_launch = graph_launch, dev->graph_free = graph_free;
}

static void graph_device_close(void) {
    free(graph.now);
}

#endif
