/* schedules.c - random schedules of the engine: whatever arrives when, is chunked, preempted, aborted or
 * answered by changing weights, on however many ranks, each request is bit for bit what it is alone.
 *
 *     schedules [--first SEED] [--count N] [--ranks R] [--device cuda]
 *     schedules_broken --plant FAULT [...]: the verdict is good when the fault was found
 *
 * The exit code is the verdict. A schedule that fails is made shorter as long as it fails, and printed. One
 * that hangs or crashes ends the program, with its seed. */
#include "schedule_check.h"
#include "support/planted_faults.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

#ifndef WB_PLANTED_FAULTS
bool plant_fault(const char *name) {
    (void)name;
    return false;
}
#endif

enum { FIRST_SEED = 1, COUNT = 250 };

typedef struct tally {
    uint64_t steps, preemptions, aborted, changed, taken_over, continued, accepted, rejected, paused, lent,
        refused, failed, behind_drafts;
    uint64_t listed; /* tokens whose indexers chose, of records that say what */
    uint64_t of_family[N_FAMILIES];
} tally;

static void add_to_tally(tally *t, const schedule *s, const outcome *out) {
    for (int r = 0; r < s->n_ranks; r++) {
        t->preemptions += out->stats[r].preemptions;
        t->lent += out->stats[r].lent;
        t->refused += out->refusals[r];
        t->accepted += out->stats[r].accepted_drafts;
        t->rejected += out->stats[r].drafts - out->stats[r].accepted_drafts;
        t->taken_over += out->stats[r].taken_over_tokens;
    }
    t->of_family[s->config.family]++;
    t->steps += out->stats[0].steps;
    t->paused += out->pause_steps[0];
    t->failed += out->failed_steps[0];
    t->behind_drafts += out->behind_drafts[0];
    for (uint32_t i = 0; i < MAX_ASKS; i++) {
        if (!out->done[i]) continue;
        t->aborted += out->done[i]->record.finish == WB_FINISH_ABORT;
        t->changed += out->done[i]->record.n_spans > 1;
        t->continued += out->continued[i] != NULL;
        t->listed += out->done[i]->record.indexer ? out->done[i]->record.indexer->rows : 0;
    }
}

/* ---- what ends the program ----------------------------------------------------------------------- */

/* The seed as words, made before its schedule runs: a signal's handler may only write. */
static char ended_at[80];

static void tell_seed(int signal_number) {
    const ssize_t written = write(STDERR_FILENO, ended_at, strlen(ended_at));
    (void)written;
    raise(signal_number); /* which is the default again */
}

static void tell_seed_at_signals(void) {
    static const int signals[] = {SIGALRM, SIGABRT, SIGSEGV, SIGBUS, SIGFPE};
    struct sigaction action = {.sa_handler = tell_seed, .sa_flags = (int)SA_RESETHAND};
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) sigaction(signals[i], &action, NULL);
}

/* A hang is a failure. */
static void begin_seed(uint64_t seed) {
    snprintf(ended_at, sizeof ended_at, "seed %" PRIu64 ": hangs or crashes\n", seed);
    alarm(120);
}

/* ---- a schedule ---------------------------------------------------------------------------------- */

/* Of the first rank that has one, or "". */
static const char *first_failure(const schedule *s, const outcome *out) {
    for (int r = 0; r < s->n_ranks; r++)
        if (out->failures[r][0]) return out->failures[r];
    return "";
}

/* The first failure, or "". tally NULL: not counted. */
static const char *run_schedule(schedule *s, tally *t) {
    static outcome out;
    begin_seed(s->seed);
    memset(&out, 0, sizeof out);
    schedule_run(s, &out);
    if (first_failure(s, &out)[0] == 0) {
        schedule_check(s, &out);
        if (t) add_to_tally(t, s, &out);
    }
    for (uint32_t i = 0; i < MAX_ASKS; i++)
        if (out.done[i]) wb_completion_free(out.done[i]);
    return first_failure(s, &out);
}

/* ---- what matters of a schedule ------------------------------------------------------------------ */

static bool still_fails(const schedule *s) {
    static schedule copy;
    copy = *s;
    return run_schedule(&copy, NULL)[0] != 0;
}

static void without_event(schedule *s, uint32_t i) {
    s->n_events--;
    memmove(&s->events[i], &s->events[i + 1], (s->n_events - i) * sizeof *s->events);
}

/* One rank less; its requests go to the others. */
static void with_fewer_ranks(schedule *s) {
    s->n_ranks--;
    for (uint32_t i = 0; i < s->n_asks; i++) s->rank[i] %= (uint32_t)s->n_ranks;
}

static bool with_fewer_new_tokens(schedule *s, uint32_t i) {
    return s->asks[i].request.max_tokens > 1 && s->asks[i].request.max_tokens--;
}

static bool with_a_shorter_prompt(schedule *s, uint32_t i) {
    wb_request *r = &s->asks[i].request;
    if (r->n_tokens < 2) return false;
    if (r->routes_start == r->n_tokens) r->routes_start--;
    r->n_tokens--;
    return true;
}

/* Leaves out whatever it fails without. */
static void shrink(schedule *s) {
    static schedule less;
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t i = s->n_events; i-- > 0;) {
            less = *s;
            if (s->events[i].kind == EVENT_WEIGHTS && s->events[i].number == 0) continue;
            without_event(&less, i);
            if (!still_fails(&less)) continue;
            *s = less;
            changed = true;
        }
        for (less = *s; less.n_ranks > 1; less = *s) {
            with_fewer_ranks(&less);
            if (!still_fails(&less)) break;
            *s = less;
            changed = true;
        }
        for (uint32_t i = 0; i < 2 * s->n_asks; i++)
            for (less = *s; (i % 2 ? with_a_shorter_prompt : with_fewer_new_tokens)(&less, i / 2);
                 less = *s) {
                if (!still_fails(&less)) break;
                *s = less;
                changed = true;
            }
    }
}

static void report(schedule *s, const char *failure) {
    printf("seed %" PRIu64 ": %s\n", s->seed, failure);
    fflush(stdout);
    shrink(s);
    printf("seed %" PRIu64 ", what is left of it: %s\n", s->seed, run_schedule(s, NULL));
    schedule_print(s);
}

/* ---- the command --------------------------------------------------------------------------------- */

typedef struct options {
    uint64_t first, count, max_ranks;
    bool planted, cuda;
} options;

static bool read_options(int argc, char **argv, options *o) {
    const struct {
        const char *name;
        uint64_t *value;
    } numbers[] = {{"--first", &o->first}, {"--count", &o->count}, {"--ranks", &o->max_ranks}};
    for (int i = 1; i < argc; i += 2) {
        bool known = i + 1 < argc && strcmp(argv[i], "--plant") == 0 && plant_fault(argv[i + 1]);
        if (known) o->planted = true;
        if (i + 1 < argc && strcmp(argv[i], "--device") == 0) {
            o->cuda = strcmp(argv[i + 1], "cuda") == 0;
            known = o->cuda || strcmp(argv[i + 1], "cpu") == 0;
        }
        for (size_t k = 0; k < sizeof numbers / sizeof numbers[0]; k++) {
            if (strcmp(argv[i], numbers[k].name) != 0 || i + 1 == argc) continue;
            char *end;
            errno = 0;
            *numbers[k].value = strtoull(argv[i + 1], &end, 10);
            known = argv[i + 1][0] >= '0' && argv[i + 1][0] <= '9' && *end == 0 && errno == 0;
        }
        if (!known) return false;
    }
    /* The last seed is 2^64 - 1. */
    return o->count >= 1 && o->count - 1 <= UINT64_MAX - o->first && o->max_ranks >= 1 &&
           o->max_ranks <= MAX_RANKS;
}

static uint64_t rarest_family(const tally *t) {
    uint64_t least = t->of_family[0];
    for (int i = 1; i < N_FAMILIES; i++) least = t->of_family[i] < least ? t->of_family[i] : least;
    return least;
}

/* That the schedules show something; few of them need not. */
static bool rich_enough(const tally *t, const options *o) {
    const uint64_t n = o->count;
    return n < COUNT ||
           (rarest_family(t) >= n / 64 && t->listed >= n && t->preemptions >= n / 8 && t->aborted >= n / 8 &&
            t->changed >= n / 8 && t->taken_over >= n && t->continued >= n / 8 && t->accepted >= n / 16 &&
            t->rejected >= n / 8 && t->paused >= n / 8 && t->refused >= n / 8 && t->behind_drafts >= n / 64 &&
            ((t->lent >= n / 8 && t->failed >= n / 64) || o->max_ranks == 1));
}

/* A rank has a GPU of its own. Ranks of one process that share one stand still where a rank launches a kernel
 * for the first time: CUDA loads it, waits for all that the GPU does and lets nobody launch until then, while
 * another rank's step there waits for rows of the first. False: there is none. */
static bool limit_to_gpus(options *o) {
    const uint64_t n = (uint64_t)wb_device_count_cuda();
    if (o->max_ranks > n) o->max_ranks = n;
    return n > 0;
}

int main(int argc, char **argv) {
    options o = {.first = FIRST_SEED, .count = COUNT, .max_ranks = MAX_RANKS};
    tally t = {0};
    const bool help = argc == 2 && strcmp(argv[1], "--help") == 0;
    if (help || !read_options(argc, argv, &o)) {
        fprintf(help ? stdout : stderr,
                "usage: schedules [--first SEED] [--count N] [--ranks 1..%d] [--device cpu|cuda]\n",
                MAX_RANKS);
        return help ? 0 : 2;
    }
    if (o.cuda && !limit_to_gpus(&o)) {
        printf("schedules: skipped, there is no CUDA device\n");
        return 77;
    }
    tell_seed_at_signals();
    for (uint64_t i = 0; i < o.count; i++) {
        static schedule s;
        schedule_make(&s, o.first + i, (int)o.max_ranks, o.cuda);
        const char *failure = run_schedule(&s, &t);
        if (failure[0] == 0) continue;
        report(&s, failure);
        return !o.planted;
    }
    if (o.planted) {
        printf("schedules: the fault that was planted was not found\n");
        return 1;
    }
    printf("schedules: seeds %" PRIu64 "..%" PRIu64 ", %" PRIu64 " steps, %" PRIu64
           " of them paused, %" PRIu64 " failed, %" PRIu64 " events behind a wrong draft, %" PRIu64
           " preemptions, %" PRIu64 " aborted, %" PRIu64 " requests under changing weights, %" PRIu64
           " tokens taken over, %" PRIu64 " records continued, %" PRIu64 " lent, %" PRIu64
           " refused, %" PRIu64 " tokens with what indexers chose, %" PRIu64 " drafts accepted, %" PRIu64
           " rejected, %" PRIu64 " of the rarest family: each as it is alone\n",
           o.first, o.first + o.count - 1, t.steps, t.paused, t.failed, t.behind_drafts, t.preemptions,
           t.aborted, t.changed, t.taken_over, t.continued, t.lent, t.refused, t.listed, t.accepted,
           t.rejected, rarest_family(&t));
    if (rich_enough(&t, &o)) return 0;
    printf("expected more of each: the schedules are too easy to show anything\n");
    return 1;
}
