/* routing_check.h - a caller's routing on its way in and out: checked once, where it comes in; what it asks
 * for is there when the forward is done. */
#ifndef WB_ROUTING_CHECK_H
#define WB_ROUTING_CHECK_H

#include "planned_check.h"

typedef struct wb_routing_stage {
    void *direction, *ids, *used; /* host views */
    wb_row_run *padding;          /* host [pass.n_padding] */
    wb_planned_stage planned;
} wb_routing_stage;

void wb_routing_layout(const wb_model *model, int64_t max_tokens, wb_routing_stage *stage, wb_arena *arena);

/* INVALID_ARGUMENT unless lists are for a model with indexers, routing has ids, every direction is known and
 * every forced id is below E; names token, layer, choice and id; and unless no row is native where something
 * is planned, which wb_planned_check looks at. Then routing, padding and used of `pass`. */
wb_status wb_routing_take(const wb_model *model, const wb_routing_stage *stage, int64_t T,
                          const wb_routing *routing, wb_pass *pass);

/* Hands pass.used of a whole forward to the caller. */
wb_status wb_routing_give(const wb_model *model, const wb_pass *pass);

#endif
