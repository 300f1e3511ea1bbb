/* graph_calls.h - calls of ops as a device with graphs writes them down (graph_device.h): their arguments,
 * doing them later, and comparing them. */
#ifndef GRAPH_CALLS_H
#define GRAPH_CALLS_H

#include "support/mailbox_ops.h"

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
    wb_rows rows[3];
    union {
        wb_matmul products[GRAPH_PRODUCTS];
        wb_attention attention;
        wb_norm norm;
        wb_attention_inputs inputs;
        wb_topk topk;
        wb_router router;
        wb_moe_plan plan;
        wb_grouped grouped;
        wb_weight weight;
        wb_route_check check;
        wb_mailboxes boxes;
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
        return real->rmsnorm_forward(dev, NUM(0), NUM(1), c->rows[0], c->args.norm, c->rows[1]);
    case WB_OP_add_rmsnorm:
        return real->add_rmsnorm(dev, NUM(0), NUM(1), c->rows[0], c->rows[1], c->args.norm, c->rows[2]);
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
    case WB_OP_mailbox_send:
        return real->mailbox_send(dev, &c->args.boxes, NUM(0), PTR(1), PTR(2), c->rows[0]);
    case WB_OP_mailbox_receive:
        return real->mailbox_receive(dev, &c->args.boxes, PTR(0), PTR(1));
    case WB_OP_mailbox_return:
        return real->mailbox_return(dev, &c->args.boxes, NUM(0), PTR(1), PTR(2), c->rows[0]);
    case WB_OP_mailbox_wait:
        return real->mailbox_wait(dev, &c->args.boxes);
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
#define NORM(n) ADDRESS((n).w), graph_bits((n).eps), WORD((n).zero_centered)
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
    SAY(ROWS(a->q), ROWS(a->k), ROWS(a->v), WORD(a->norm_whole));
    SAY(NORM(a->q_norm), NORM(a->k_norm), graph_bits(a->clip), ADDRESS(a->pos), ADDRESS(a->cos_table));
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

static void graph_say_mailboxes(graph_call *c) {
    const wb_mailboxes *p = &c->args.boxes;
    SAY(WORD(p->rank), WORD(p->n_ranks), WORD(p->max_rows), WORD(p->width), WORD(p->dtype),
        graph_bits((float)p->timeout));
    for (int32_t r = 0; r < p->n_ranks; r++) SAY(ADDRESS(p->mailbox[r]), WORD(p->first_slot[r + 1]));
}

static void graph_say_all(graph_call *c) {
    SAY(WORD(c->op), IDS(c->ids), ROWS(c->rows[0]), ROWS(c->rows[1]), ROWS(c->rows[2]));
    graph_say(c, c->words, GRAPH_WORDS);
    if (c->op == WB_OP_matmul) graph_say_products(c);
    if (c->op == WB_OP_rmsnorm_forward || c->op == WB_OP_add_rmsnorm) SAY(NORM(c->args.norm));
    if (c->op == WB_OP_attention_forward) graph_say_attention(c);
    if (c->op == WB_OP_attention_prepare) graph_say_inputs(c);
    if (c->op == WB_OP_topk) graph_say_topk(c);
    if (c->op == WB_OP_gate_forward || c->op == WB_OP_gate_backward) graph_say_router(c, &c->args.router);
    if (c->op == WB_OP_moe_plan) graph_say_plan(c);
    if (c->op == WB_OP_grouped_matmul) graph_say_grouped(c);
    if (c->args.boxes.n_ranks > 0 && c->op >= WB_OP_mailbox_send) graph_say_mailboxes(c);
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
#undef NORM

/* Written down and, outside of a capture, done. */
static wb_status graph_take(wb_device *dev, graph_call *c) {
    graph_say_all(c);
    /* A step begins with its embedding. */
    if (c->op == WB_OP_embed_forward) graph.now->n = 0;
    graph_must(graph.now->n < GRAPH_CALLS, "fewer ops in a step");
    graph.now->calls[graph.now->n++] = *c;
    return graph.captures ? WB_OK : graph_do(dev, c);
}

#endif
