/* infer_graphs.c - see infer_graphs.h. */
#include "infer_graphs.h"
#include "wb_check.h"

/* Steps of more tokens are bound by what they compute, and their sizes seldom come again. */
enum { MAX_ROWS = 512, FINE = 8 };

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t power_of_2_from(int64_t n) {
    int64_t power = 1;
    while (power < n) power *= 2;
    return power;
}

/* Powers of 2, and three sizes between two of them from 16 on. */
int64_t wb_graph_rows(int64_t n, int64_t max) {
    if (n < 1 || n > MAX_ROWS) return n;
    const int64_t power = power_of_2_from(n), step = power > 2 * FINE ? power / FINE : power;
    return min64((n + step - 1) / step * step, max);
}

bool wb_graph_is_size(int64_t T, int64_t max) {
    return T > 0 && T <= MAX_ROWS && wb_graph_rows(T, max) == T;
}

int64_t wb_graph_blocks(int64_t n, int64_t max) {
    return n == 0 ? 0 : min64(power_of_2_from(n), max);
}

/* ---- the list ------------------------------------------------------------------------------------ */

static void drop_all(wb_infer_graphs *graphs, wb_device *dev) {
    for (int32_t i = 0; i < graphs->n; i++) dev->graph_free(dev, graphs->list[i].graph);
    graphs->n = 0;
}

static bool same_size(const wb_graph_size *a, const wb_graph_size *b) {
    return a->T == b->T && a->n_logits == b->n_logits && a->max_blocks == b->max_blocks &&
           a->mailbox_rows == b->mailbox_rows && a->one_a_sequence == b->one_a_sequence && a->ids == b->ids &&
           a->hidden_of == b->hidden_of;
}

/* That of `size`, or a new one in the place of the one that was not used for longest; *known_out: a step of
 * the size has run. */
static wb_infer_graph *find(wb_infer_graphs *graphs, wb_device *dev, const wb_graph_size *size,
                            bool *known_out) {
    wb_infer_graph *oldest = &graphs->list[0];
    for (int32_t i = 0; i < graphs->n; i++) {
        wb_infer_graph *graph = &graphs->list[i];
        *known_out = same_size(&graph->size, size);
        if (*known_out) return graph;
        if (graph->used < oldest->used) oldest = graph;
    }
    *known_out = false;
    if (graphs->n < WB_MAX_GRAPHS)
        oldest = &graphs->list[graphs->n++];
    else
        dev->graph_free(dev, oldest->graph);
    *oldest = (wb_infer_graph){.size = *size};
    return oldest;
}

/* ---- a step -------------------------------------------------------------------------------------- */

static wb_status capture(wb_infer_graph *graph, wb_device *dev, wb_status (*run)(void *context),
                         void *context) {
    void *captured = NULL;
    WB_TRY(dev->graph_begin(dev));
    const wb_status status = run(context);
    const wb_status ended = dev->graph_end(dev, &captured);
    if (status == WB_OK && ended == WB_OK) graph->graph = captured;
    if (status != WB_OK && ended == WB_OK) dev->graph_free(dev, captured);
    return status == WB_OK ? ended : status;
}

wb_status wb_infer_graphs_run(wb_infer_graphs *graphs, wb_device *dev, const wb_graph_size *size,
                              uint64_t stamp, wb_status (*run)(void *context), void *context) {
    bool known;
    if (!dev->graph_begin || size->T == 0) return run(context);
    if (graphs->stamp != stamp) drop_all(graphs, dev);
    graphs->stamp = stamp;
    wb_infer_graph *graph = find(graphs, dev, size, &known);
    graph->used = ++graphs->steps;
    if (!known) {
        const wb_status status = run(context);
        if (status != WB_OK) graph->size = (wb_graph_size){0};
        return status;
    }
    if (!graph->graph && !graph->refused) graph->refused = capture(graph, dev, run, context) != WB_OK;
    return graph->graph ? dev->graph_launch(dev, graph->graph) : run(context);
}

void wb_infer_graphs_close(wb_infer_graphs *graphs, wb_device *dev) {
    if (graphs->n > 0) drop_all(graphs, dev);
}
