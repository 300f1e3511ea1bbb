/* engine.h - the engine object; for the files of this folder only. */
#ifndef WB_ENGINE_H
#define WB_ENGINE_H

#include "filing.h"
#include "lending.h"
#include "load_count.h"
#include "mtp_drafts.h"
#include "request.h"
#include "results.h"
#include "sampling.h"
#include "sched_known.h"
#include "scheduler.h"
#include "sequence.h"
#include "step_cells.h"
#include "step_forcing.h"
#include "step_verdict.h"
#include "wb_string_table.h"

struct wb_engine {
    wb_model *model;
    wb_comm *comm; /* the model's */
    wb_workspace workspace;
    wb_infer *infer;
    wb_request_limits limits;
    uint64_t weight_version, weights_digest; /* compared with the other ranks' in each step */
    uint64_t source_digest; /* of the model that the weights were copied from, or of the engine's at open */
    wb_scheduler scheduler;
    wb_string_table rids;   /* rid -> wb_sequence *, of unfinished and of finished, not yet polled requests */
    wb_sequence_list ready; /* finished, not yet polled */
    wb_sampler sampler;
    wb_step_results results;
    wb_filing filing; /* of the latest committed step */
    wb_lending lending;
    wb_step_forcing forcing;
    wb_step_cells cells;
    wb_load_count load;
    wb_step_word *words; /* [R] of the latest step; owner: the workspace */
    uint64_t steps, prefill_tokens, decode_tokens, taken_over_tokens; /* since open */
    uint64_t submitted, finished, aborted;                            /* requests since open */
    wb_request_load unfinished;
    wb_mtp_drafts mtp;                /* of the latest committed step */
    uint64_t drafts, accepted_drafts; /* since open */
    double step_seconds;              /* since open */
    uint32_t max_drafts;              /* of a request in a step */
    int32_t max_prefill_tokens;       /* in a step in which some rank decodes */
    bool recompute_keys;
    bool asks_for_pause; /* this rank */
    bool paused;         /* some rank asked for it when the latest step was made */
};

/* Room in a step's results for what is kept of `sequence`, so that no step makes any. */
wb_status wb_engine_make_room(wb_engine *engine, const wb_sequence *sequence);

/* Into the line of this rank, at its place. */
void wb_engine_enter(wb_engine *engine, wb_sequence *sequence);

/* Out of the line of this rank: to the finished requests, or on its way home. */
void wb_engine_finish(wb_engine *engine, wb_sequence *sequence, wb_finish reason);

/* From the unfinished requests of this rank, wherever they ran, to the finished ones. */
void wb_engine_deliver(wb_engine *engine, wb_sequence *sequence, wb_finish reason);

/* What this rank's word says of requests that could travel, once the present step has been committed, with
 * which n_ended of its running ones end; where the step was not made, none is to. */
void wb_engine_tell_lending(const wb_engine *engine, bool made, uint64_t n_ended, wb_step_word *word);

/* Lets travel what the words of the latest step say. Collective where they say that there is something, which
 * is so on all ranks or on none; on failure nothing has. */
wb_status wb_engine_travel(wb_engine *engine);

#endif
