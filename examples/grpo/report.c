/* report.c - what a run says: the numbers of its steps in files (metrics.h), a progress display on standard
 * error, the table at the end, and a failure. Only one rank's report is loud: the others say failures
 * alone. */
#include "metrics.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Steps whose numbers are averaged at either end of the table, at most. */
enum { END_STEPS = 3 };

/* What the table has of the first steps, and of the last ones: step i's at i % END_STEPS. */
typedef struct ends {
    double first[END_STEPS], last[END_STEPS];
} ends;

struct report {
    const options *o;
    FILE *metrics;      /* NULL: silent rank, or --make-base */
    event_file *events; /* NULL without --tensorboard */
    bool loud, terminal;
    /* Progress: when something was last said, the present phase and its start, the start of the run. */
    double last_said, phase_start, run_start;
    const char *phase;
    uint64_t phase_step, first_step;
    ends rewards, balancedness;
    double moved_bytes, seconds_rebalance; /* sums over steps */
    uint64_t epoch;                        /* after the last one */
    int64_t n_steps;
    step_metrics compared; /* sums over the steps that were compared */
    double n_compared;
};

double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The two places that numbers of a step are written to. */
static wb_status open_metrics(report *r, uint64_t first_step) {
    char dir[PATH_BYTES];
    WB_TRY(metrics_file_open(r->o, first_step, &r->metrics));
    if (!r->o->tensorboard) return WB_OK;
    WB_TRY(path_join(dir, r->o->out_dir, EVENTS_FOLDER));
    return event_file_open(dir, first_step, &r->events);
}

wb_status report_open(const options *o, bool loud, uint64_t first_step, report **report_out) {
    report *r;
    WB_TRY(WB_NEW(r, 1, "report"));
    r->o = o;
    r->loud = loud;
    r->terminal = isatty(STDERR_FILENO);
    r->first_step = first_step;
    r->run_start = r->last_said = now_seconds();
    wb_status status = loud && !o->make_base ? open_metrics(r, first_step) : WB_OK;
    if (status != WB_OK) {
        report_close(r);
        return status;
    }
    *report_out = r;
    return WB_OK;
}

void report_close(report *r) {
    if (!r) return;
    if (r->metrics) fclose(r->metrics);
    event_file_close(r->events);
    free(r);
}

void report_failure(int rank, wb_status status) {
    static bool said;
    if (!said)
        fprintf(stderr, "waybill-grpo: rank %d: %s: %s\n", rank, wb_status_string(status),
                wb_error_message());
    said = true;
    fflush(stderr);
}

/* ---- progress -------------------------------------------------------------------------------- */

/* A line of at most this many columns fits narrow terminals. Elsewhere, under mpirun always, lines go to a
 * log: fewer of them. */
enum { PROGRESS_COLUMNS = 60 };
static const double terminal_seconds = 0.1, log_seconds = 10;

/* "1:02:03" or "4:05". */
static void put_time(char *text, size_t bytes, double seconds) {
    int64_t s = (int64_t)fmin(fmax(seconds, 0), 1e9);
    if (s >= 3600)
        snprintf(text, bytes, "%" PRId64 ":%02d:%02d", s / 3600, (int)(s / 60 % 60), (int)(s % 60));
    else
        snprintf(text, bytes, "%d:%02d", (int)(s / 60), (int)(s % 60));
}

static void put_rate(char *text, size_t bytes, double rate) {
    if (rate >= 1e6)
        snprintf(text, bytes, "%.1fM", rate / 1e6);
    else if (rate >= 1e4)
        snprintf(text, bytes, "%.1fk", rate / 1e3);
    else
        snprintf(text, bytes, "%.0f", rate);
}

/* Time left of the run, from the steps that are done; in the first step nothing is known. */
static void put_run_left(const report *r, uint64_t step, double now, char *text, size_t bytes) {
    char left[32];
    double done = (double)(step - r->first_step);
    text[0] = '\0';
    if (done < 1 || r->o->make_base) return;
    double all = (double)((uint64_t)r->o->steps - r->first_step), elapsed = now - r->run_start;
    put_time(left, sizeof left, elapsed / done * all - elapsed);
    snprintf(text, bytes, ", run %s", left);
}

void report_progress(report *r, uint64_t step, const char *phase, int64_t done, int64_t total) {
    if (!r->loud || r->o->quiet) return;
    double now = now_seconds();
    if (r->phase != phase || r->phase_step != step) {
        r->phase = phase;
        r->phase_step = step;
        r->phase_start = now;
    }
    if (now - r->last_said < (r->terminal ? terminal_seconds : log_seconds)) return;
    r->last_said = now;
    double seconds = now - r->phase_start, rate = seconds > 0 ? (double)done / seconds : 0;
    char line[160], speed[32], left[32], run[64];
    int at = 0;
    put_rate(speed, sizeof speed, rate);
    put_time(left, sizeof left, rate > 0 ? (double)(total - done) / rate : 0);
    put_run_left(r, step, now, run, sizeof run);
    if (!r->o->make_base)
        at = snprintf(line, sizeof line, "step %" PRIu64 "/%" PRId64 " ", step + 1, r->o->steps);
    at += snprintf(line + at, sizeof line - (size_t)at, "%s %.0f%% %s tok/s %s left", phase,
                   total > 0 ? 100 * (double)done / (double)total : 100, speed, left);
    /* Rather none than half a number. */
    if (at + (int)strlen(run) <= PROGRESS_COLUMNS) strcpy(line + at, run);
    fprintf(stderr, r->terminal ? "\r\033[K%s" : "%s\n", line);
}

void report_line(report *r, const char *format, ...) {
    if (!r->loud || r->o->quiet) return;
    if (r->terminal) fputs("\r\033[K", stderr);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    r->last_said = now_seconds();
}

/* ---- a step ---------------------------------------------------------------------------------- */

static wb_status write_events(event_file *events, uint64_t step, const step_metrics *m) {
    for (int i = 0; i < n_metric_rows; i++) {
        const metric_row *row = &metric_rows[i];
        if (metrics_have(m, row->group))
            WB_TRY(event_file_add(events, metric_group_names[row->group], row->key, metric_value(row, m)));
    }
    return event_file_end_step(events, step);
}

static wb_status write_metrics(report *r, uint64_t step, const step_metrics *m) {
    char *line;
    WB_TRY(metrics_line(r->o, step, m, &line));
    const bool failed = fprintf(r->metrics, "%s\n", line) < 0 || fflush(r->metrics) != 0;
    free(line);
    if (failed) return wb_fail(WB_IO, "%s/" METRICS_FILE ": cannot be written: %m", r->o->out_dir);
    return r->events ? write_events(r->events, step, m) : WB_OK;
}

static void remember_end(ends *e, int64_t step, double number) {
    if (step < END_STEPS) e->first[step] = number;
    e->last[step % END_STEPS] = number;
}

/* Of the pass that --eplb works on: planned places experts for the training, static and live for both. */
static double balancedness_of(const report *r, const step_metrics *m) {
    return r->o->eplb == EPLB_PLANNED ? m->balancedness_training : m->balancedness;
}

static void remember(report *r, const step_metrics *m) {
    remember_end(&r->rewards, r->n_steps, m->answers.reward);
    remember_end(&r->balancedness, r->n_steps++, balancedness_of(r, m));
    r->moved_bytes += m->moved_bytes;
    r->seconds_rebalance += m->seconds_rebalance;
    r->epoch = m->epoch;
    if (!m->compared) return;
    r->n_compared++;
    r->compared.replay.kl_k3 += m->replay.kl_k3;
    r->compared.off.kl_k3 += m->off.kl_k3;
    r->compared.routed_differently += m->routed_differently;
    r->compared.off.token_differ += m->off.token_differ;
}

wb_status report_step(report *r, uint64_t step, const step_metrics *m) {
    if (!r->loud) return WB_OK;
    remember(r, m);
    WB_TRY(write_metrics(r, step, m));
    char off[96] = "", balance[32] = "", evaluated[32] = "", drafts[48] = "", lists[48] = "";
    if (r->o->eplb != EPLB_OFF) snprintf(balance, sizeof balance, "  balance %.2f", balancedness_of(r, m));
    if (m->compared)
        snprintf(off, sizeof off, "  (replay off: kl %.2e, %.1f %%)", m->off.kl_k3,
                 100 * m->off.token_differ);
    if (m->evaluated) snprintf(evaluated, sizeof evaluated, "  evaluation %.3f", m->evaluation.reward);
    if (m->drafts > 0)
        snprintf(drafts, sizeof drafts, "  drafts accepted %.0f %%", 100 * m->accepted_drafts / m->drafts);
    if (r->o->replay_indexer)
        snprintf(lists, sizeof lists, "  looked differently %.1f %%", 100 * m->lists.differently);
    report_line(
        r,
        "step %3" PRIu64 "/%" PRId64
        "  reward %.3f%s  kl %.2e  routed differently %.1f %%%s%s%s%s  %.0f tok/s rollout, train %.1f s",
        step + 1, r->o->steps, m->answers.reward, evaluated, m->replay.kl_k3, 100 * m->routed_differently,
        lists, off, balance, drafts, m->answers.response_tokens / m->seconds_rollout, m->seconds_train);
    return WB_OK;
}

/* ---- the end --------------------------------------------------------------------------------- */

/* Of as many steps at either end as do not overlap. */
static void print_ends(const report *r, const char *name, const ends *e) {
    int64_t half = r->n_steps / 2, n = half < 1 ? 1 : half > END_STEPS ? END_STEPS : half;
    double start = 0, end = 0;
    char what[64];
    for (int64_t i = 0; i < n; i++) {
        start += e->first[i];
        end += e->last[(r->n_steps - 1 - i) % END_STEPS];
    }
    snprintf(what, sizeof what, "%s (mean of %" PRId64 " step%s)", name, n, n > 1 ? "s" : "");
    printf("%-46s %12.3f %12.3f\n", what, start / (double)n, end / (double)n);
}

void report_summary(const report *r) {
    if (!r->loud || r->n_steps == 0) return;
    printf("\n%-46s %12s %12s\n", "", "start", "end");
    print_ends(r, "reward", &r->rewards);
    if (r->o->eplb != EPLB_OFF)
        print_ends(r, r->o->eplb == EPLB_PLANNED ? "balancedness in training" : "balancedness in the rollout",
                   &r->balancedness);
    if (r->o->eplb == EPLB_LIVE || r->o->eplb == EPLB_PLANNED)
        printf("experts moved %.3f MB, %.3f s waited, epoch %" PRIu64 "\n", 1e-6 * r->moved_bytes,
               r->seconds_rebalance, r->epoch);
    if (r->n_compared > 0) {
        double n = r->n_compared;
        printf("\n%-46s %12s %12s\n", "first forward of a batch, before any update", "replay off",
               "replay on");
        printf("%-46s %12.3e %12.3e\n", "KL(rollout || trainer), k3", r->compared.off.kl_k3 / n,
               r->compared.replay.kl_k3 / n);
        printf("%-46s %11.2f%% %11.2f%%\n", "tokens routed differently than in the rollout",
               100 * r->compared.off.token_differ / n, 100 * r->compared.routed_differently / n);
    }
    const char *out = r->o->out_dir;
    printf("\nmetrics     %s/" METRICS_FILE "\n", out);
    if (r->o->tensorboard) printf("events      %s/" EVENTS_FOLDER "\n", out);
    printf("checkpoint  %s/checkpoint\n", out);
    if (!r->o->no_dump) printf("dump        %s/dump\n", out);
}
