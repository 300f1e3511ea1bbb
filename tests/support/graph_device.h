/* graph_device.h - a CPU device with graphs: every op that a step of inference or a router calls is written
 * down with its arguments. Outside of a capture it is done as well; in one it is not, and a launch does what
 * was written down, with the arguments of then. So a launch is right only where the arguments of its step
 * would have been the same, and everything else that differs was read from memory. What a graph cannot hold,
 * a copy to or from the host or an allocation, aborts in a capture. Ranks are threads: each thread has such a
 * device. */
#ifndef GRAPH_DEVICE_H
#define GRAPH_DEVICE_H

#include "support/graph_calls.h"

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
static wb_status graph_rmsnorm(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_norm norm, wb_rows y) {
    graph_call c = graph_blank(WB_OP_rmsnorm_forward);
    c.words[0] = WORD(n), c.words[1] = WORD(width), c.args.norm = norm;
    c.rows[0] = x, c.rows[1] = y;
    return TAKE();
}
static wb_status graph_add_rmsnorm(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_rows y,
                                   wb_norm norm, wb_rows normed) {
    graph_call c = graph_blank(WB_OP_add_rmsnorm);
    c.words[0] = WORD(n), c.words[1] = WORD(width), c.args.norm = norm;
    c.rows[0] = x, c.rows[1] = y, c.rows[2] = normed;
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

static wb_status graph_mailbox_send(wb_device *dev, const wb_mailboxes *boxes, int64_t n,
                                    const int32_t *row_token, const int32_t *offsets, wb_rows x) {
    graph_call c = graph_blank(WB_OP_mailbox_send);
    c.args.boxes = *boxes, c.rows[0] = x;
    c.words[0] = WORD(n), c.words[1] = ADDRESS(row_token), c.words[2] = ADDRESS(offsets);
    return TAKE();
}
static wb_status graph_mailbox_receive(wb_device *dev, const wb_mailboxes *boxes, int32_t *offsets,
                                       int32_t *place) {
    graph_call c = graph_blank(WB_OP_mailbox_receive);
    c.args.boxes = *boxes, c.words[0] = ADDRESS(offsets), c.words[1] = ADDRESS(place);
    return TAKE();
}
static wb_status graph_mailbox_return(wb_device *dev, const wb_mailboxes *boxes, int64_t n,
                                      const int32_t *offsets, const int32_t *place, wb_rows rows) {
    graph_call c = graph_blank(WB_OP_mailbox_return);
    c.args.boxes = *boxes, c.rows[0] = rows;
    c.words[0] = WORD(n), c.words[1] = ADDRESS(offsets), c.words[2] = ADDRESS(place);
    return TAKE();
}
static wb_status graph_mailbox_wait(wb_device *dev, const wb_mailboxes *boxes) {
    graph_call c = graph_blank(WB_OP_mailbox_wait);
    c.args.boxes = *boxes;
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
    mailbox_ops_give(dev);
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
    dev->mailbox_send = graph_mailbox_send, dev->mailbox_receive = graph_mailbox_receive;
    dev->mailbox_return = graph_mailbox_return, dev->mailbox_wait = graph_mailbox_wait;
    dev->to_host = graph_to_host, dev->to_device = graph_to_device, dev->mem_alloc = graph_mem_alloc;
    dev->copy = graph_copy, dev->zero = graph_zero;
    dev->graph_begin = graph_begin, dev->graph_end = graph_end;
    dev->graph_launch = graph_launch, dev->graph_free = graph_free;
}

static void graph_device_close(void) {
    free(graph.now);
}

#endif
