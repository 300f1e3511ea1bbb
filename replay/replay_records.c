/* replay_records.c - the records that a step may replay: made known, found by request id. Refuses: records
 * of another model, malformed records, a rid twice. */
#include "replay_state.h"

#include <string.h>

wb_status wb_replay_add(wb_replay *r, const wb_route_model *from, const wb_record *record) {
    if (!r || !from || !record)
        return wb_fail(WB_INVALID_ARGUMENT, "replay: handle, model or record is NULL");
    WB_TRY(wb_route_model_check(from));
    if (wb_route_model_match(&r->model, from) != WB_OK)
        return wb_fail_context(WB_MISMATCH, "replay: record %s", record->rid ? record->rid : "(no rid)");
    WB_TRY(wb_record_check(&r->model, record, true));
    if (r->options.hash && wb_record_check_hash(&r->model, r->options.hash, record) != WB_OK)
        return wb_fail_context(WB_MISMATCH, "replay");
    uint64_t before;
    size_t length = strlen(record->rid);
    if (wb_string_table_find(&r->rids, record->rid, length, &before))
        return wb_fail(WB_INVALID_ARGUMENT, "replay: record %s was added before", record->rid);
    WB_TRY(WB_GROW(r->records, r->n_records + 1, &r->record_capacity, "replay: records"));
    WB_TRY(wb_string_table_add(&r->rids, record->rid, length, r->n_records, NULL));
    r->records[r->n_records++] = *record;
    return WB_OK;
}

void wb_replay_clear(wb_replay *r) {
    wb_string_table_free(&r->rids);
    r->n_records = 0;
    wb_replay_abort(r);
}

const wb_record *wb_replay_find_record(const wb_replay *r, const char *rid) {
    uint64_t i;
    return wb_string_table_find(&r->rids, rid, strlen(rid), &i) ? &r->records[i] : NULL;
}
