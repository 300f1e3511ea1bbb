/* recurrent_problem.h - random calls of the ops of recurrent layers: sequences of several lengths with
 * padding behind them, and the same sequences cut into calls, whose states pass from one to the next. */
#ifndef WB_RECURRENT_PROBLEM_H
#define WB_RECURRENT_PROBLEM_H

#include "ops_test.h"

enum { MAX_RUNS = 8, PAD = 3 };

/* Whole sequences, one after the other, and PAD tokens of none; a last run is empty. */
typedef struct batch {
    int64_t T, n_runs;
    wb_sequence_run *runs; /* device [n_runs] */
} batch;

static inline batch random_batch(int64_t n_sequences, int64_t shortest, int64_t longest) {
    batch b = {.n_runs = n_sequences + 1, .runs = xalloc(MAX_RUNS, sizeof(wb_sequence_run))};
    for (int64_t i = 0; i < n_sequences; i++) {
        const int32_t n = (int32_t)rng_range(shortest, longest);
        b.runs[i] = (wb_sequence_run){(int32_t)b.T, n, -1};
        b.T += n;
    }
    b.runs[n_sequences] = (wb_sequence_run){(int32_t)b.T, 0, -1};
    b.T += PAD;
    return b;
}

static inline wb_sequences whole_of(const batch *b) {
    return (wb_sequences){.T = b->T, .n_runs = b->n_runs, .runs = b->runs};
}

/* The run of token t, or NULL. */
static inline const wb_sequence_run *run_of(const batch *b, int64_t t) {
    for (int64_t i = 0; i < b->n_runs; i++)
        if (t >= b->runs[i].start && t < b->runs[i].start + b->runs[i].n) return &b->runs[i];
    return NULL;
}

/* A call of some tokens of some sequences, which are rows `row` of the batch; states are numbered so that no
 * sequence has its own number. */
typedef struct piece {
    int64_t T, n_runs;
    wb_sequence_run *runs; /* device [n_runs] */
    int64_t *row;          /* [T] */
} piece;

static inline piece open_piece(const batch *b) {
    return (piece){.runs = xalloc(MAX_RUNS, sizeof(wb_sequence_run)), .row = xalloc(b->T, sizeof(int64_t))};
}

/* The next tokens of each sequence, done[i] of which have been: none, one or several; false: all are done. */
static inline bool next_piece(const batch *b, int64_t *done, piece *p) {
    bool left = false;
    p->T = p->n_runs = 0;
    for (int64_t i = 0; i < b->n_runs; i++) {
        const int64_t rest = b->runs[i].n - done[i], most = rng_range(0, 1) ? 1 : 70;
        const int64_t n = rng_range(0, rest < most ? rest : most);
        left = left || rest > 0;
        if (n == 0) continue;
        p->runs[p->n_runs++] = (wb_sequence_run){(int32_t)p->T, (int32_t)n, (int32_t)(b->n_runs - 1 - i)};
        for (int64_t k = 0; k < n; k++) p->row[p->T++] = b->runs[i].start + done[i]++;
    }
    return left;
}

/* to[i] = from[row[i]] of rows of `width`. */
static inline float *rows_at(const float *from, const piece *p, int64_t width) {
    float *to = floats(p->T * width);
    for (int64_t i = 0; i < p->T; i++)
        memcpy(to + i * width, from + p->row[i] * width, (size_t)width * sizeof(float));
    return to;
}

static inline void assert_rows_at(const float *found, const float *expected, const piece *p, int64_t width,
                                  const char *what) {
    for (int64_t i = 0; i < p->T; i++)
        assert_same_bits(found + i * width, expected + p->row[i] * width, width, what);
}

#endif
