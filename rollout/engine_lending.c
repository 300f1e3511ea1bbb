/* engine_lending.c - requests travel between two steps (lending.h). A travel has two halves: what can fail on
 * one rank alone, letters written, memory made, requests opened; then, once all ranks agree, what cannot.
 * Refuses: when, which the words of the latest step say. */
#include "engine.h"
#include "sequence_bytes.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <string.h>

/* ---- who gives to whom --------------------------------------------------------------------------- */

static bool is_here(const wb_engine *engine, const wb_sequence *s) {
    return s->host == wb_comm_rank(engine->comm);
}

static bool is_guest(const wb_engine *engine, const wb_sequence *s) {
    return s->home != wb_comm_rank(engine->comm);
}

/* Of the lent ones: whether its rank is to be told that it was aborted. */
static bool tells_abort(const wb_sequence *s) {
    return s->abort_asked && !s->abort_told;
}

static bool fits(const wb_step_word *word, const wb_sequence *s) {
    return (uint64_t)wb_kv_blocks_for((int32_t)word->block_size, (uint64_t)s->max_len - 1) <= word->n_blocks;
}

/* A request that only this rank's pool holds would be planned to go in each step, and never would. Before the
 * first step, which tells the sizes of the pools, any may fit. */
static bool fits_elsewhere(const wb_engine *engine, const wb_sequence *s) {
    for (int r = 0; r < wb_comm_size(engine->comm); r++) {
        const wb_step_word *word = &engine->words[r];
        if (r != wb_comm_rank(engine->comm) && (word->n_blocks == 0 || fits(word, s))) return true;
    }
    return false;
}

void wb_engine_tell_lending(const wb_engine *engine, bool made, uint64_t n_ended, wb_step_word *word) {
    const wb_lending *lending = &engine->lending;
    const wb_scheduler *scheduler = &engine->scheduler;
    if (!lending->on) return;
    word->letters = lending->ended.n > 0;
    for (const wb_sequence *s = lending->lent.first; s; s = s->next) word->letters |= tells_abort(s);
    word->n_blocks = (uint64_t)engine->limits.n_blocks;
    word->block_size = (uint64_t)engine->limits.block_size;
    if (!made) return;
    word->load = (uint64_t)scheduler->running + (uint64_t)scheduler->waiting - n_ended;
    word->room =
        scheduler->waiting == 0 ? (uint64_t)(scheduler->max_running - scheduler->running) + n_ended : 0;
    for (wb_sched_entry *entry = scheduler->first_waiting; entry; entry = entry->next) {
        const wb_sequence *s = wb_sequence_of(entry);
        word->lends += !is_guest(engine, s) && fits_elsewhere(engine, s);
    }
}

/* The rank with the most requests of those that have one to give, and the one with the fewest of those that
 * have room and nobody waiting; false where the one would not have fewer than the other. */
static bool find_move(const wb_step_word *words, int n_ranks, int *from_out, int *to_out) {
    int from = -1, to = -1;
    for (int r = 0; r < n_ranks; r++) {
        if (words[r].lends > 0 && (from < 0 || words[r].load > words[from].load)) from = r;
        if (words[r].room > 0 && (to < 0 || words[r].load < words[to].load)) to = r;
    }
    if (from < 0 || to < 0 || words[to].load >= words[from].load) return false;
    *from_out = from;
    *to_out = to;
    return true;
}

/* How many requests of this rank go to each, one by one to where there are fewest; whether any rank has
 * something for another one. The same on all ranks. Where one does not lend nothing travels, as it would wait
 * for nobody; the words stay, and the verdict of each step says which rank it is. */
static bool plan(wb_engine *engine) {
    wb_lending *lending = &engine->lending;
    const int n_ranks = wb_comm_size(engine->comm);
    wb_step_word *left = lending->left;
    bool any = false;
    memcpy(left, engine->words, (size_t)n_ranks * sizeof *left);
    memset(lending->gives, 0, (size_t)n_ranks * sizeof *lending->gives);
    for (int r = 0; r < n_ranks; r++) {
        if (!left[r].lending) return false;
        any |= left[r].letters > 0;
    }
    for (int from, to; !engine->paused && find_move(left, n_ranks, &from, &to); any = true) {
        if (from == wb_comm_rank(engine->comm)) lending->gives[to]++;
        left[from].lends--;
        left[from].load--;
        left[to].room--;
        left[to].load++;
    }
    return any;
}

/* ---- letters out --------------------------------------------------------------------------------- */

typedef enum letter_kind { LETTER_LENT, LETTER_ENDED, LETTER_ABORTED } letter_kind;

/* Followed by the sequence's bytes, unless it was aborted. number: of the request, at its home. */
typedef struct letter {
    uint64_t kind, number, bytes;
} letter;

static wb_status write_letter(wb_lending *lending, letter_kind kind, const wb_sequence *s) {
    const bool with_rows = kind == LETTER_LENT || s->return_routes;
    const letter l = {kind, s->number, kind == LETTER_ABORTED ? 0 : wb_sequence_bytes(s, with_rows)};
    const size_t end = lending->out_bytes + sizeof l + l.bytes;
    WB_TRY(WB_GROW(lending->out, end, &lending->out_capacity, "engine letters"));
    memcpy(lending->out + lending->out_bytes, &l, sizeof l);
    if (l.bytes > 0) wb_sequence_write(s, with_rows, lending->out + lending->out_bytes + sizeof l);
    lending->out_bytes = end;
    return WB_OK;
}

/* The first ones of those that wait here and fit there. */
static wb_status write_lent(wb_engine *engine, int to) {
    uint64_t n = engine->lending.gives[to];
    for (wb_sched_entry *entry = engine->scheduler.first_waiting; entry && n > 0; entry = entry->next) {
        wb_sequence *s = wb_sequence_of(entry);
        if (is_guest(engine, s) || !is_here(engine, s) || !fits(&engine->words[to], s)) continue;
        WB_TRY(write_letter(&engine->lending, LETTER_LENT, s));
        s->host = to;
        n--;
    }
    return WB_OK;
}

static wb_status write_letters(wb_engine *engine) {
    wb_lending *lending = &engine->lending;
    lending->out_bytes = 0;
    for (int r = 0; r < wb_comm_size(engine->comm); r++) {
        lending->sent_at[r] = lending->out_bytes;
        for (const wb_sequence *s = lending->ended.first; s; s = s->next)
            if (s->home == r) WB_TRY(write_letter(lending, LETTER_ENDED, s));
        for (const wb_sequence *s = lending->lent.first; s; s = s->next)
            if (s->host == r && tells_abort(s)) WB_TRY(write_letter(lending, LETTER_ABORTED, s));
        WB_TRY(write_lent(engine, r));
        lending->sent[r] = lending->out_bytes - lending->sent_at[r];
    }
    return WB_OK;
}

/* ---- letters in ---------------------------------------------------------------------------------- */

static wb_status make_room(wb_lending *lending, int n_ranks, int rank) {
    size_t bytes = 0;
    for (int r = 0; r < n_ranks; r++) {
        lending->received_at[r] = bytes;
        lending->received[r] = lending->sizes[(size_t)r * (size_t)n_ranks + (size_t)rank];
        bytes += lending->received[r];
    }
    return WB_GROW(lending->in, bytes, &lending->in_capacity, "engine letters");
}

static wb_status exchange(wb_engine *engine) {
    wb_lending *lending = &engine->lending;
    const int n_ranks = wb_comm_size(engine->comm), rank = wb_comm_rank(engine->comm);
    WB_TRY(wb_comm_all_gather(engine->comm, lending->sent, (size_t)n_ranks * sizeof *lending->sent,
                              lending->sizes));
    WB_TRY(wb_comm_agree(engine->comm, make_room(lending, n_ranks, rank)));
    return wb_comm_all_to_all_v(engine->comm, lending->out, lending->sent, lending->sent_at, lending->in,
                                lending->received, lending->received_at);
}

/* All letters that came, one after the other: true with the next one, from *at on, which begins at 0. */
static bool next_letter(const wb_lending *lending, int n_ranks, size_t *at, letter *letter_out,
                        const uint8_t **bytes_out) {
    const size_t last = (size_t)n_ranks - 1, end = lending->received_at[last] + lending->received[last];
    if (*at + sizeof *letter_out > end) return false;
    memcpy(letter_out, lending->in + *at, sizeof *letter_out);
    *bytes_out = lending->in + *at + sizeof *letter_out;
    *at += sizeof *letter_out + letter_out->bytes;
    return true;
}

/* Takes out the one of this number, which is there. */
static wb_sequence *take_out(wb_sequence_list *list, uint64_t number) {
    wb_sequence *found = NULL;
    for (int32_t n = list->n; n > 0; n--) {
        wb_sequence *s = wb_sequence_list_pop(list);
        if (s->number == number)
            found = s;
        else
            wb_sequence_list_append(list, s);
    }
    return found;
}

static wb_sequence *find_lent(const wb_lending *lending, uint64_t number) {
    wb_sequence *s = lending->lent.first;
    while (s && s->number != number) s = s->next;
    return s;
}

static wb_status open_lent(wb_engine *engine, const letter *l, const uint8_t *bytes) {
    wb_sequence *s = NULL;
    WB_TRY(wb_sequence_create_from(bytes, l->bytes, &engine->limits, &s));
    s->host = wb_comm_rank(engine->comm);
    wb_sequence_list_append(&engine->lending.arrived, s);
    return wb_engine_make_room(engine, s);
}

static wb_status open_letters(wb_engine *engine) {
    const wb_lending *lending = &engine->lending;
    const uint8_t *bytes;
    size_t at = 0;
    for (letter l; next_letter(lending, wb_comm_size(engine->comm), &at, &l, &bytes);) {
        if (l.kind == LETTER_LENT) WB_TRY(open_lent(engine, &l, bytes));
        if (l.kind == LETTER_ENDED)
            WB_TRY(wb_sequence_reserve_read(find_lent(lending, l.number), bytes, l.bytes));
    }
    return WB_OK;
}

/* ---- once all ranks agree ------------------------------------------------------------------------ */

/* What was sent. */
static void send_off(wb_engine *engine) {
    wb_lending *lending = &engine->lending;
    for (wb_sched_entry *entry = engine->scheduler.first_waiting, *next; entry; entry = next) {
        wb_sequence *s = wb_sequence_of(entry);
        next = entry->next;
        if (is_here(engine, s)) continue;
        wb_scheduler_remove(&engine->scheduler, entry);
        wb_sequence_list_append(&lending->lent, s);
        lending->n_lent++;
    }
    for (wb_sequence *s = lending->lent.first; s; s = s->next) s->abort_told = s->abort_asked;
    lending->n_guests -= lending->ended.n;
    wb_sequence_list_free(&lending->ended);
}

static void take_guest(wb_engine *engine, wb_sequence *s) {
    wb_engine_enter(engine, s);
    engine->lending.n_guests++;
}

/* One that has ended by now is on its way home. */
static void abort_guest(wb_engine *engine, int home, uint64_t number) {
    for (wb_sched_entry *entry = engine->scheduler.first; entry; entry = entry->next) {
        wb_sequence *s = wb_sequence_of(entry);
        if (s->home != home || s->number != number) continue;
        wb_engine_finish(engine, s, WB_FINISH_ABORT);
        return;
    }
}

/* What came. */
static void take_in(wb_engine *engine) {
    wb_lending *lending = &engine->lending;
    const int n_ranks = wb_comm_size(engine->comm);
    const uint8_t *bytes;
    size_t at = 0;
    int from = 0;
    for (letter l; next_letter(lending, n_ranks, &at, &l, &bytes);) {
        const size_t begin = (size_t)(bytes - lending->in);
        while (begin > lending->received_at[from] + lending->received[from]) from++;
        if (l.kind == LETTER_LENT) take_guest(engine, wb_sequence_list_pop(&lending->arrived));
        if (l.kind == LETTER_ABORTED) abort_guest(engine, from, l.number);
        if (l.kind != LETTER_ENDED) continue;
        wb_sequence *s = take_out(&lending->lent, l.number);
        wb_engine_deliver(engine, s, wb_sequence_read(s, bytes));
    }
}

static void stay(wb_engine *engine) {
    wb_sequence_list_free(&engine->lending.arrived);
    for (wb_sched_entry *entry = engine->scheduler.first; entry; entry = entry->next)
        wb_sequence_of(entry)->host = wb_comm_rank(engine->comm);
}

wb_status wb_engine_travel(wb_engine *engine) {
    if (!engine->lending.on || !plan(engine)) return WB_OK;
    wb_filing_finish(&engine->filing);
    wb_status status = wb_comm_agree(engine->comm, write_letters(engine));
    if (status == WB_OK) status = exchange(engine);
    if (status == WB_OK) status = wb_comm_agree(engine->comm, open_letters(engine));
    if (status == WB_OK) {
        send_off(engine);
        take_in(engine);
    } else {
        stay(engine);
    }
    return status;
}
