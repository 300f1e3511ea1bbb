/* wb_eplb.h - where experts live: load statistics, placements with redundant experts, dispatch, move plans.
 * The umbrella: it includes the eight headers of this room, one a folder (files/, which reads and writes for
 * several of them, has none), and says what they have in common.
 * Refuses: models; weights move where a store names them, or not at all.
 *
 *     captured routes --wb_load_*--> loads [M][L][E] --wb_eplb_solve--> placement --broadcast--> all ranks
 *                                                                       |  |
 *                     tokens' expert ids --wb_dispatch_rows-------------+  +--wb_move_plan_open--> copies
 *
 *     header           what                                               online          offline
 *     wb_placement.h   ranks, nodes, slots; the maps of a placement       the maps        saving a file
 *     wb_load.h        tokens of each expert                              ring of passes  files, dumps
 *     wb_dispatch.h    which replica a token goes to                      all
 *     wb_solve.h       which expert each slot should hold                 solvers         files, dumps
 *     wb_move.h        what turns one placement into another              all
 *     wb_rebalance.h   experts that move while a model works              all
 *     wb_simulate.h    what a placement makes of a step; made-up loads                    all
 *     wb_cost_model.h  seconds and bytes of tokens, experts, transfers    all
 *
 * Online code runs inside an engine or a trainer between steps; offline code (the folders named offline/, and
 * simulate/) reads and writes files, walks dumps and predicts. Offline code uses online code, never the other
 * way round.
 *
 * Letters: R ranks, N nodes, S physical slots (E and the redundant ones), E logical experts, L MoE layers,
 * K choices of a token, T tokens, M micro-batches (or passes). A slot holds the weights of one expert; an
 * expert in several slots has that many *replicas*, and solvers take its tokens to be split evenly among
 * them. The load of a rank is the sum over its slots, balancedness is mean / max of the loads of live ranks,
 * 1 being perfect.
 *
 * Everything here is deterministic: the same bytes from the same input for any number of threads and on
 * every rank. All memory is host memory, but what an expert store names (wb_expert_store: the parts of a slot
 * and the shadow slots), which is device memory. Calls are local to the rank unless their comment says
 * collective. Pointers in structs are borrowed for the call, unless a comment says otherwise. Errors, outputs
 * and threads: as in wb_base.h.
 *
 * Structs that callers fill are of two kinds. Options (wb_load_options, wb_eplb_options, wb_move_options,
 * wb_rebalance_options) have defaults, come from an initialiser and begin with their size, so that fields can
 * be added. Descriptions (wb_topology, wb_cost_model, wb_routed_rows, wb_load_region, wb_moe_layers,
 * wb_traffic, wb_synthetic, wb_expert_part) have no defaults for what they describe: every field is the
 * caller's, none is ever added, and some lie in arrays or in other structs, where a size would be of no use.
 * An expert store (wb_expert_store) is a table of the caller's functions: all are set, and it begins with its
 * size.
 */
#ifndef WB_EPLB_H
#define WB_EPLB_H

#include "wb_cost_model.h"
#include "wb_dispatch.h"
#include "wb_load.h"
#include "wb_move.h"
#include "wb_placement.h"
#include "wb_rebalance.h"
#include "wb_simulate.h"
#include "wb_solve.h"

#endif
