/* run_notes.c - what a run says of itself beside its steps: what it found where it began, how it was stopped,
 * the memory that it took. */
#include "open_sizes.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

void report_ignored(report *r, const wb_model *model) {
    if (model && wb_model_note(model)) report_line(r, "%s", wb_model_note(model));
}

void report_task(report *r, const trainer *t, const task *task_, const char *stops_from) {
    const options *o = t->o;
    uint32_t n;
    const uint32_t *stops = task_stop_tokens(task_, &n);
    if (n == 0)
        report_line(r, "no token ends a sample: each has --max-tokens %" PRId64, o->max_tokens);
    else
        report_line(r, "samples end at token %" PRIu32 "%s (%s)", stops[0], n > 1 ? ", and others" : "",
                    stops_from);
    if (o->schedule != LR_CONSTANT && o->steps > o->lr_steps)
        report_line(r, "--steps %" PRId64 " is past --lr-steps %" PRId64 ": rate %g from there on", o->steps,
                    o->lr_steps, learning_rate(o, (uint64_t)o->lr_steps));
    if (task_n_long(task_) > 0)
        report_line(r, "%" PRId64 " prompts of more than %" PRId64 " tokens: %s", task_n_long(task_),
                    t->max_prompt,
                    o->long_prompts == LONG_PROMPTS_SKIP ? "left out" : "their beginning is left out");
}

void report_stopped(const trainer *t, report *r, int number, bool dropped, bool saved) {
    char what[64] = "";
    if (dropped) snprintf(what, sizeof what, "step %" PRIu64 " dropped, ", t->step + 1);
    if (saved)
        report_line(r,
                    "stopped by signal %d (%s): %scheckpoint after step %" PRIu64
                    " in %s/checkpoint, --resume goes on",
                    number, strsignal(number), what, t->step, t->o->out_dir);
    else
        report_line(r, "stopped by signal %d (%s): %sno step is done, so there is no checkpoint", number,
                    strsignal(number), what);
}

wb_status report_memory(const trainer *t, report *r) {
    struct rusage usage;
    uint64_t device = t->device->peak_bytes, process = 0;
    if (getrusage(RUSAGE_SELF, &usage) == 0) process = (uint64_t)usage.ru_maxrss * 1024;
    WB_TRY(wb_comm_all_reduce_max_u64(t->comm, &device));
    WB_TRY(wb_comm_all_reduce_max_u64(t->comm, &process));
    char text[160];
    snprintf(text, sizeof text,
             "memory of a rank, at most: device %.2f GiB (%" PRIu64 " bytes), process %.2f GiB (%" PRIu64
             " bytes)",
             (double)device / GIB, device, (double)process / GIB, process);
    report_line(r, "%s", text);
    if (t->o->quiet && wb_comm_rank(t->comm) == 0) fprintf(stderr, "%s\n", text);
    return WB_OK;
}
