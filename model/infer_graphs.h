/* infer_graphs.h - steps of inference as graphs of the device (wb_device.h), one for each size of a step.
 *
 * What a launch does is fixed when its graph is captured: which ops, their sizes, every address. So steps of
 * one size have to be the same calls, and whatever else differs from step to step is read from memory:
 *   - tokens, positions, sequences, pool rows, directions, logit rows: the upload block, where each lies at a
 *     place that the size alone decides; block tables are the last of them, because their number varies
 *   - rows of padding: by their direction and their sequence -1; a graph always has directions
 *   - runs of sequences: filled up with empty ones to a number that the size decides
 *   - block tables: as wide as the size's max_blocks, whatever the step's
 *   - logits: as many as the size's, the wanted ones first
 *   - experts of a layer, their rows and offsets: made on the device
 *   - the length of contexts: read from the positions by the kernels, whose grids go by tokens
 *   - weights and placement: their content may change in place; where an address changes, or memory of the
 *     ops moves, all graphs are dropped (the stamp below)
 * The ids that a step writes are the caller's memory and part of the size.
 *
 * The first step of a size runs op by op, which shows that it can and lets ops make what they need; the
 * second one is captured and launched, later ones are launched. A capture takes memory of the driver's; where
 * it fails, the steps of its size go on op by op.
 * With several ranks there are graphs where rows go by mailboxes (wb_mailbox.h): what is waited for there is
 * numbered by the device, so that a launch meets a step of the others that runs op by op.
 * Refuses: steps whose rows travel by the exchange, forced and planned steps, and whatever else the host
 * looks at on the way. */
#ifndef WB_INFER_GRAPHS_H
#define WB_INFER_GRAPHS_H

#include "wb_device.h"

#include <stdbool.h>

enum { WB_MAX_GRAPHS = 64 };

/* A size of steps. A zeroed struct: none, the step runs op by op. */
typedef struct wb_graph_size {
    int64_t T, n_logits, max_blocks;
    int64_t mailbox_rows; /* of the pass; which depends on the largest step of all ranks */
    bool one_a_sequence;  /* of the pass: fewer kernels then */
    const void *ids;
    const void *hidden_of; /* of MTP layers: whose output they go on from (infer_state.h) */
} wb_graph_size;

typedef struct wb_infer_graph {
    wb_graph_size size;
    void *graph;   /* NULL: its steps ran op by op so far */
    bool refused;  /* the device made none, as where it has no memory for one, and is not asked again */
    uint64_t used; /* number of the latest step */
} wb_infer_graph;

/* Zeroed: no graphs. */
typedef struct wb_infer_graphs {
    wb_infer_graph list[WB_MAX_GRAPHS];
    int32_t n;
    uint64_t steps;
    uint64_t stamp; /* of the addresses that the graphs have */
} wb_infer_graphs;

/* The tokens, or logits, that a step of n is padded to, at most max; n where no graph is made of so many. */
int64_t wb_graph_rows(int64_t n, int64_t max);

/* Whether a graph is made of steps of T tokens. */
bool wb_graph_is_size(int64_t T, int64_t max);

/* The blocks of a sequence of a step that has n at most; at most max. */
int64_t wb_graph_blocks(int64_t n, int64_t max);

/* Runs a step of `size`: `run`, or the graph of what it did. stamp: of the addresses that it uses now. */
wb_status wb_infer_graphs_run(wb_infer_graphs *graphs, wb_device *dev, const wb_graph_size *size,
                              uint64_t stamp, wb_status (*run)(void *context), void *context);

void wb_infer_graphs_close(wb_infer_graphs *graphs, wb_device *dev);

#endif
