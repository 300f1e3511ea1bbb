/* engine_weights.c - new weights between two steps: a pause for them, what may be named how, and what becomes
 * of the keys that there are. Refuses: the copy of the weights (wb_model_copy_weights). */
#include "engine.h"
#include "wb_check.h"
#include "weights_digest.h"

#include <inttypes.h>

/* A record tells weights apart by their versions: other weights by the name that a request is being answered
 * under would hide the change from it. */
static wb_status check_version(const wb_engine *engine, uint64_t source_digest, uint64_t version) {
    if (version == engine->weight_version && source_digest == engine->source_digest) return WB_OK;
    for (wb_sched_entry *entry = engine->scheduler.first; entry; entry = entry->next) {
        const wb_record *record = entry->record;
        const wb_sequence *s = wb_sequence_of(entry);
        for (uint32_t i = 0; i < record->n_spans; i++)
            if (s->spans[i].weight_version == version)
                return wb_fail(WB_INVALID_ARGUMENT,
                               "set weights: expected a new version, found %" PRIu64
                               " for other weights: request %s has been fed under it",
                               version, record->rid);
    }
    return WB_OK;
}

/* Every request that is fed under `version` starts a span. */
static wb_status reserve_spans(wb_engine *engine, uint64_t version) {
    for (wb_sched_entry *entry = engine->scheduler.first; entry; entry = entry->next)
        WB_TRY(wb_sequence_reserve_span(wb_sequence_of(entry), version));
    return WB_OK;
}

/* Whatever this rank can refuse the weights for. */
static wb_status prepare_weights(wb_engine *engine, const wb_model *from, uint64_t version,
                                 uint64_t *digest_out) {
    WB_TRY(wb_model_prepare_copy(engine->model, from));
    WB_TRY(wb_weights_digest(from, digest_out));
    WB_TRY(check_version(engine, *digest_out, version));
    return reserve_spans(engine, version);
}

/* No key that there is was computed by the new weights, nor was a row chosen. */
static void forget_keys(wb_engine *engine) {
    wb_kv_blocks_forget(&engine->scheduler.blocks);
    wb_state_pool_forget(&engine->scheduler.states);
    for (wb_sched_entry *entry = engine->scheduler.first; entry; entry = entry->next)
        if (wb_sequence_of(entry)->n_fed > 0) entry->shares = false;
}

/* A state that went back from a wrong draft is yet to be fed the right tokens before it. The new weights are
 * not to feed it what the old ones drew the next tokens behind: no engine without drafts does that. So these
 * tokens are drawn again, by the new weights. */
static void take_back_unfed(wb_engine *engine) {
    wb_sched_entry *entry = wb_sched_first_running(&engine->scheduler);
    for (; entry; entry = wb_sched_next_running(entry)) {
        if (entry->n_went_back == 0) continue;
        wb_sequence_take_back(wb_sequence_of(entry), entry->n_in_pool + 1);
        wb_scheduler_taken_back(&engine->scheduler, entry);
    }
}

void wb_engine_pause(wb_engine *engine) {
    if (engine) engine->asks_for_pause = true;
}

void wb_engine_resume(wb_engine *engine) {
    if (engine) engine->asks_for_pause = false;
}

wb_status wb_engine_set_weights(wb_engine *engine, const wb_model *from, uint64_t version) {
    uint64_t source_digest, digest;
    if (!engine || !from) return wb_fail(WB_INVALID_ARGUMENT, "set weights: engine or model is NULL");
    wb_status status = prepare_weights(engine, from, version, &source_digest);
    if (wb_model_copy_travels(engine->model, from)) status = wb_comm_agree(engine->comm, status);
    WB_TRY(status);
    forget_keys(engine);
    WB_TRY(wb_model_copy_weights(engine->model, from));
    WB_TRY(wb_weights_digest(engine->model, &digest));
    engine->source_digest = source_digest;
    engine->weights_digest = digest;
    engine->weight_version = version;
    if (engine->recompute_keys)
        wb_scheduler_preempt_all(&engine->scheduler);
    else
        take_back_unfed(engine);
    return WB_OK;
}
