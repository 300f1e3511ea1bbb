/* report.c - what a run says: OUT/metrics.jsonl (one object a step), a progress display on standard error,
 * the table at the end, and a failure. Only one rank's report is loud: the others say failures alone. */
#include "option_table.h"
#include "wb_file.h"
#include "wb_memory.h"

#include <dirent.h>
#include <inttypes.h>
#include <jansson.h>
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
    FILE *metrics; /* NULL: silent rank, or --make-base */
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

/* The lines of steps before first_step, those of an earlier, interrupted run, from the open file to `kept`.
 * *n_out: as many as those whose lines are all there. */
static wb_status keep_lines(FILE *old, const char *path, wb_new_file *kept, uint64_t first_step,
                            uint64_t *n_out) {
    wb_status status = WB_OK;
    char *line = NULL;
    size_t bytes = 0;
    int64_t length = 0;
    for (size_t number = 1; status == WB_OK; number++) {
        status = text_line(old, path, number, &line, &bytes, &length);
        if (status != WB_OK || length < 0) break;
        json_t *object = json_loads(line, 0, NULL);
        uint64_t step = (uint64_t)json_integer_value(json_object_get(object, "step"));
        if (object && step < first_step) status = wb_new_file_write(kept, line, (size_t)length);
        if (object && step == *n_out) ++*n_out;
        json_decref(object);
    }
    free(line);
    return status;
}

/* As keep_lines. Lines that are lost are no obstacle, since nothing is computed from them, but they are said:
 * the file no longer has each step. */
static wb_status keep_metrics(const char *path, wb_new_file *kept, uint64_t first_step) {
    uint64_t n = 0;
    FILE *old;
    wb_status status = text_open(path, &old);
    if (status == WB_OK) {
        status = keep_lines(old, path, kept, first_step, &n);
        fclose(old);
    }
    if (status != WB_OK && status != WB_NOT_FOUND) return status;
    if (n < first_step)
        fprintf(stderr,
                "%s: expected a line of each of the %" PRIu64
                " steps that are done, found none of step %" PRIu64 "\n",
                path, first_step, n);
    return WB_OK;
}

static wb_status start_metrics(const char *path, uint64_t first_step) {
    wb_new_file file;
    WB_TRY(wb_new_file_open(path, &file));
    wb_status status = first_step > 0 ? keep_metrics(path, &file, first_step) : WB_OK;
    if (status == WB_OK) status = wb_new_file_sync(&file);
    if (status == WB_OK) return wb_new_file_commit(&file);
    wb_new_file_discard(&file);
    return status;
}

static const char metrics_name[] = METRICS_FILE;

/* What runs that were killed in the middle of start_metrics left: the temporary has the process id in its
 * name, so that no later run writes over it. */
static void remove_temporaries(const char *out) {
    DIR *dir = opendir(out);
    if (!dir) return;
    for (const struct dirent *entry; (entry = readdir(dir));)
        if (wb_new_file_stem(entry->d_name) == strlen(metrics_name) &&
            strncmp(entry->d_name, metrics_name, strlen(metrics_name)) == 0)
            unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
}

/* The file begins as a whole, with the lines that are kept, and is appended to from there on: a run is
 * watched while it goes, so a step's line has to be in the file when the step is done. */
static wb_status open_metrics(report *r, uint64_t first_step) {
    char path[PATH_BYTES];
    WB_TRY(path_join(path, r->o->out_dir, METRICS_FILE));
    remove_temporaries(r->o->out_dir);
    WB_TRY(start_metrics(path, first_step));
    r->metrics = fopen(path, "a");
    return r->metrics ? WB_OK : wb_fail(WB_IO, "%s: cannot be written: %m", path);
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

static json_t *fidelity_json(const wb_replay_metrics *m, double routed_differently) {
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "routed_differently", routed_differently, "kl_k1",
                     m->kl_k1, "kl_k3", m->kl_k3, "ratio_outside", m->ratio_outside, "native_token_differ",
                     m->token_differ, "native_decision_differ", m->decision_differ, "fallback_share",
                     m->fallback_share);
}

static json_t *experts_json(const options *o, const step_metrics *m) {
    char eplb[OPTION_TEXT_BYTES];
    return json_pack("{s:s, s:f, s:f, s:I, s:f, s:f}", "eplb", option_text(option_find("--eplb"), o, eplb),
                     "balancedness", m->balancedness, "balancedness_training", m->balancedness_training,
                     "epoch", (json_int_t)m->epoch, "moved_bytes", m->moved_bytes, "seconds_rebalance",
                     m->seconds_rebalance);
}

static wb_status write_metrics(report *r, uint64_t step, const step_metrics *m) {
    json_t *line =
        json_pack("{s:I, s:s, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "step",
                  (json_int_t)step, "replay", wb_replay_mode_name(r->o->replay), "long_prompts",
                  (json_int_t)m->long_prompts, "reward", m->reward_mean, "reward_std", m->reward_std,
                  "samples", m->samples, "response_tokens", m->response_tokens, "loss", m->loss, "clip_share",
                  m->clip_share, "kl_reference", m->kl_reference, "grad_norm", m->grad_norm,
                  "routed_differently_updates", m->routed_differently_updates, "planned_updates", m->planned,
                  "seconds_rollout", m->seconds_rollout, "seconds_train", m->seconds_train);
    if (line) json_object_set_new(line, "experts", experts_json(r->o, m));
    if (line) json_object_set_new(line, "fidelity", fidelity_json(&m->replay, m->routed_differently));
    if (line && m->compared)
        json_object_set_new(line, "fidelity_replay_off", fidelity_json(&m->off, m->off.token_differ));
    char *text = line ? json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(line);
    if (!text) return wb_fail(WB_OUT_OF_MEMORY, "metrics of step %" PRIu64, step);
    int failed = fprintf(r->metrics, "%s\n", text) < 0 || fflush(r->metrics) != 0;
    free(text);
    return failed ? wb_fail(WB_IO, "%s/metrics.jsonl: cannot be written: %m", r->o->out_dir) : WB_OK;
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
    remember_end(&r->rewards, r->n_steps, m->reward_mean);
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
    char off[96] = "", balance[32] = "";
    if (r->o->eplb != EPLB_OFF) snprintf(balance, sizeof balance, "  balance %.2f", balancedness_of(r, m));
    if (m->compared)
        snprintf(off, sizeof off, "  (replay off: kl %.2e, %.1f %%)", m->off.kl_k3,
                 100 * m->off.token_differ);
    report_line(r,
                "step %3" PRIu64 "/%" PRId64
                "  reward %.3f  kl %.2e  routed differently %.1f %%%s%s  %.0f tok/s rollout, train %.1f s",
                step + 1, r->o->steps, m->reward_mean, m->replay.kl_k3, 100 * m->routed_differently, off,
                balance, m->response_tokens / m->seconds_rollout, m->seconds_train);
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
    printf("\nmetrics     %s/metrics.jsonl\ncheckpoint  %s/checkpoint\n", r->o->out_dir, r->o->out_dir);
    if (!r->o->no_dump) printf("dump        %s/dump\n", r->o->out_dir);
}
