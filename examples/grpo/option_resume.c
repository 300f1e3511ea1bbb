/* option_resume.c - the options in a checkpoint: what a run keeps of them, what one that resumes takes. */
#include "option_table.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

json_t *options_to_json(const options *o) {
    json_t *object = json_object();
    for (int i = 0; object && i < N_OPTIONS; i++) {
        char buffer[OPTION_TEXT_BYTES];
        const char *text = option_text(&option_rows[i], o, buffer);
        if (option_rows[i].on_resume == FREE || !text) continue;
        if (json_object_set_new(object, option_rows[i].name, json_string(text)) != 0) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

/* One option of the checkpoint against the command line's. What a checkpoint does not have, of an option that
 * is newer, is the default. */
static wb_status resume_option(const option_row *row, const char *saved, const char *where, options *o,
                               bool loud) {
    char buffer[OPTION_TEXT_BYTES], usual[OPTION_TEXT_BYTES];
    const char *now = option_text(row, o, buffer);
    if (!saved) saved = option_text(row, &option_defaults, usual);
    bool same = saved && now ? strcmp(saved, now) == 0 : saved == now;
    if (same) return WB_OK;
    if (!o->given[row - option_rows]) {
        if (!saved || option_set(row, o, saved) == WB_OK) return WB_OK;
        return wb_fail_context(WB_CORRUPT, "%s: options", where);
    }
    if (row->on_resume == FIXED)
        return wb_fail(WB_MISMATCH, "%s %s: the run in %s has %s, which a resumed run cannot change",
                       row->name, now ? now : "(none)", where, saved ? saved : "none");
    if (loud && !o->quiet)
        fprintf(stderr, "%s: %s in the checkpoint, now %s\n", row->name, saved ? saved : "none",
                now ? now : "none");
    return WB_OK;
}

/* A run that goes on without a placement has no replicas; that takes no second option. */
static void drop_replicas(options *o, const char *where, bool loud) {
    if (o->eplb != EPLB_OFF || o->redundant_experts == 0 || options_given(o, "--redundant-experts")) return;
    if (loud && !o->quiet)
        fprintf(stderr, "--redundant-experts: %" PRId64 " in %s, 0 under --eplb off\n", o->redundant_experts,
                where);
    o->redundant_experts = 0;
}

wb_status options_resume(options *o, const json_t *saved, const char *where, bool loud) {
    for (int i = 0; i < N_OPTIONS; i++) {
        if (option_rows[i].on_resume == FREE) continue;
        const json_t *value = json_object_get(saved, option_rows[i].name);
        if (value && !json_is_string(value))
            return wb_fail(WB_CORRUPT, "%s: options: %s: expected a string", where, option_rows[i].name);
        WB_TRY(resume_option(&option_rows[i], json_string_value(value), where, o, loud));
    }
    drop_replicas(o, where, loud);
    return WB_OK;
}
