/* lending.h - requests that wait on one rank and are run by another one, which has none that waits.
 *
 * All ranks know from the words of the latest step (step_verdict.h) who gives how many to whom, and whether
 * any rank has something for another one: a request that is lent; one that has ended, which goes home to be
 * polled there; that one was aborted. Where there is anything, it travels before the next step is scheduled.
 * Either all of it does or nothing.
 *
 * Owns: which requests are away, those that have ended here and are to go home, and the letters. Refuses:
 * requests that run, whose keys would have to travel too, and to lend what was lent. */
#ifndef WB_LENDING_H
#define WB_LENDING_H

#include "sequence.h"
#include "step_verdict.h"
#include "wb_memory.h"

/* A list of sequences by their `next`. */
typedef struct wb_sequence_list {
    wb_sequence *first, *last;
    int32_t n;
} wb_sequence_list;

void wb_sequence_list_append(wb_sequence_list *list, wb_sequence *sequence);
wb_sequence *wb_sequence_list_pop(wb_sequence_list *list); /* NULL: there is none */
void wb_sequence_list_free(wb_sequence_list *list);        /* and the sequences */

typedef struct wb_lending {
    bool on;
    wb_sequence_list lent;    /* of this rank, which others run */
    wb_sequence_list ended;   /* of others, which have ended here */
    wb_sequence_list arrived; /* of others, until all ranks have what was sent to them */
    int32_t n_guests;         /* of others that are here, the ended ones among them */
    uint64_t n_lent;          /* since open */
    wb_step_word *left;       /* [R] while a plan is made */
    uint64_t *gives;          /* [R] requests of this rank that go to each */
    size_t *sizes;            /* [R, R] bytes from each to each, row by row */
    /* [R] bytes to each and from each, and where they begin in `out` and `in` */
    size_t *sent, *sent_at, *received, *received_at;
    uint8_t *out, *in; /* letters, made for the most that there has been */
    size_t out_bytes, out_capacity, in_capacity;
} wb_lending;

/* In a zeroed struct; the arrays of R are the owner's. */
wb_status wb_lending_open(wb_owner *owner, bool on, int n_ranks, wb_lending *lending);
void wb_lending_close(wb_lending *lending);

#endif
