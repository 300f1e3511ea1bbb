/* mpi_control.c - see mpi_control.h. */
#include "mpi_control.h"
#include "wb_check.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How long those who wait collect each other's letters, in seconds: a rank that waits reads at once, unless
 * its core is somebody else's for a while. */
#define GRACE 3.0

/* Looks at the request between two looks at clock and letters. */
#define TESTS_A_LOOK 64

enum { GIVE_UP, LATE };

const char *wb_mpi_call_name(wb_mpi_call call) {
    static const char *const names[] = {"broadcast", "all_gather", "all_to_all_v", "barrier", "exchange"};
    return names[call];
}

wb_status wb_mpi_control_prepare(int size, wb_mpi_control *control) {
    control->comm = MPI_COMM_NULL;
    control->receive = MPI_REQUEST_NULL;
    control->sends = calloc((size_t)size, sizeof *control->sends);
    control->heard = calloc((size_t)size, sizeof *control->heard);
    if (!control->sends || !control->heard)
        return wb_fail(WB_OUT_OF_MEMORY, "MPI control channel of %d ranks", size);
    for (int r = 0; r < size; r++) control->sends[r] = MPI_REQUEST_NULL;
    return WB_OK;
}

static int listen_for_letters(wb_mpi_control *control) {
    return MPI_Irecv(&control->next, (int)sizeof control->next, MPI_BYTE, MPI_ANY_SOURCE, 0, control->comm,
                     &control->receive);
}

wb_status wb_mpi_control_open(MPI_Comm over, wb_mpi_control *control) {
    if (MPI_Comm_dup(over, &control->comm) != MPI_SUCCESS ||
        MPI_Comm_set_errhandler(control->comm, MPI_ERRORS_RETURN) != MPI_SUCCESS ||
        listen_for_letters(control) != MPI_SUCCESS)
        return wb_fail(WB_PEER, "MPI control channel: not opened");
    return WB_OK;
}

void wb_mpi_control_close(wb_mpi_control *control) {
    if (control->receive != MPI_REQUEST_NULL) {
        MPI_Cancel(&control->receive);
        MPI_Wait(&control->receive, MPI_STATUS_IGNORE);
    }
    if (control->comm != MPI_COMM_NULL) MPI_Comm_free(&control->comm);
    free(control->sends);
    free(control->heard);
}

/* ---- letters ------------------------------------------------------------------------------------- */

/* The first failure is the one that later calls are told. */
static void die(wb_mpi_control *control, const char *failure) {
    if (control->dead) return;
    control->dead = true;
    snprintf(control->failure, sizeof control->failure, "%s", failure);
}

/* Short letters leave at once (MPI's eager protocol); their requests are never waited for. */
static void send_letter(wb_comm *comm, wb_mpi_control *control, int kind, const char *text) {
    wb_mpi_letter *letter = &control->mine[kind];
    *letter = (wb_mpi_letter){.kind = kind, .call = (int32_t)control->call, .number = control->number};
    snprintf(letter->text, sizeof letter->text, "%s", text);
    for (int r = 0; r < wb_comm_size(comm); r++)
        if (r != wb_comm_rank(comm))
            MPI_Isend(letter, (int)sizeof *letter, MPI_BYTE, r, 0, control->comm, &control->sends[r]);
}

void wb_mpi_control_give_up(wb_comm *comm, wb_mpi_control *control, const char *reason) {
    char text[sizeof control->failure];
    if (control->dead) return;
    send_letter(comm, control, GIVE_UP, reason);
    snprintf(text, sizeof text, "rank %d gave up%s%s", wb_comm_rank(comm), reason[0] ? ": " : "", reason);
    die(control, text);
}

/* Takes one letter from the channel; *found_out: whether there was one. */
static wb_status read_letter(wb_mpi_control *control, bool *found_out) {
    int found = 0;
    MPI_Status from;
    if (MPI_Test(&control->receive, &found, &from) != MPI_SUCCESS)
        return wb_fail(WB_PEER, "control channel: a letter was not received");
    *found_out = found;
    if (!found) return WB_OK;
    wb_mpi_letter *letter = &control->next;
    if (letter->kind == GIVE_UP) {
        char text[sizeof control->failure];
        letter->text[sizeof letter->text - 1] = '\0';
        snprintf(text, sizeof text, "rank %d gave up%s%s", from.MPI_SOURCE, letter->text[0] ? ": " : "",
                 letter->text);
        die(control, text);
    } else {
        control->heard[from.MPI_SOURCE] = (wb_mpi_heard){letter->number, (wb_mpi_call)letter->call};
    }
    if (listen_for_letters(control) != MPI_SUCCESS)
        return wb_fail(WB_PEER, "control channel: no receive was posted");
    return WB_OK;
}

static wb_status read_letters(wb_mpi_control *control) {
    bool found = true;
    while (found) WB_TRY(read_letter(control, &found));
    return WB_OK;
}

static int count_heard(const wb_comm *comm, const wb_mpi_control *control) {
    int n = 0;
    for (int r = 0; r < wb_comm_size(comm); r++) n += control->heard[r].number > 0;
    return n;
}

static wb_status dead_fail(const wb_mpi_control *control) {
    return wb_fail(WB_PEER, "%s: %s", wb_mpi_call_name(control->call), control->failure);
}

/* ---- being late ---------------------------------------------------------------------------------- */

/* Where all ranks came and none is behind: who waits in a later call than this rank, and so answers none of
 * this one. */
static void name_further(const wb_comm *comm, const wb_mpi_control *control, char *text, size_t bytes) {
    size_t used = 0;
    for (int r = 0; r < wb_comm_size(comm) && used < bytes; r++) {
        const wb_mpi_heard *peer = &control->heard[r];
        if (peer->number <= control->number) continue;
        const uint64_t n = peer->number - control->number;
        used += (size_t)snprintf(text + used, bytes - used, "%srank %d is in %s, %" PRIu64 " call%s further",
                                 used > 0 ? ", " : "", r, wb_mpi_call_name(peer->call), n, n > 1 ? "s" : "");
    }
    if (used == 0) snprintf(text, bytes, "all ranks came, and it did not end");
}

/* The failure of a wait that was too long: who is not in this rank's call. A rank that waits in an earlier
 * one is to blame only where all ranks came: elsewhere it waits for those that did not. */
static void die_late(wb_comm *comm, wb_mpi_control *control) {
    const bool all_came = count_heard(comm, control) == wb_comm_size(comm) - 1;
    char text[sizeof control->failure];
    size_t used = (size_t)snprintf(text, sizeof text, "waited %g s: ", wb_comm_timeout(comm));
    const char *comma = "";
    for (int r = 0; r < wb_comm_size(comm) && used < sizeof text; r++) {
        const wb_mpi_heard *peer = &control->heard[r];
        const bool same = peer->number == control->number && peer->call == control->call;
        if (r == wb_comm_rank(comm) || same || peer->number > control->number) continue;
        if (!all_came && peer->number > 0 && peer->number < control->number) continue;
        const char *const other = peer->number == 0 ? "" : wb_mpi_call_name(peer->call);
        used += (size_t)snprintf(text + used, sizeof text - used, "%srank %d %s%s", comma, r,
                                 peer->number == 0 ? "did not come" : "is in ", other);
        comma = ", ";
    }
    if (comma[0] == '\0' && used < sizeof text) name_further(comm, control, text + used, sizeof text - used);
    die(control, text);
}

/* Says that this rank has waited too long, listens who else has, and fails. */
static wb_status confer(wb_comm *comm, wb_mpi_control *control) {
    send_letter(comm, control, LATE, "");
    const double end = MPI_Wtime() + GRACE;
    while (!control->dead && count_heard(comm, control) < wb_comm_size(comm) - 1 && MPI_Wtime() < end) {
        WB_TRY(read_letters(control));
        sched_yield();
    }
    die_late(comm, control);
    return dead_fail(control);
}

/* ---- calls --------------------------------------------------------------------------------------- */

wb_status wb_mpi_control_begin(wb_mpi_control *control, wb_mpi_call call) {
    control->call = call;
    control->number++;
    control->deadline = 0;
    return control->dead ? dead_fail(control) : WB_OK;
}

/* At the beginning of a call "too late" is said of this rank, unless who says it waits in a call that this
 * rank has left: both wait for somebody else then, which the first look will tell. */
wb_status wb_mpi_control_hear(wb_comm *comm, wb_mpi_control *control) {
    WB_TRY(read_letters(control));
    for (int r = 0; !control->dead && r < wb_comm_size(comm); r++) {
        const wb_mpi_heard *peer = &control->heard[r];
        if (peer->number < control->number) continue;
        char text[sizeof control->failure];
        snprintf(text, sizeof text, "rank %d did not come in time: rank %d waited in %s", wb_comm_rank(comm),
                 r, wb_mpi_call_name(peer->call));
        die(control, text);
    }
    return control->dead ? dead_fail(control) : WB_OK;
}

wb_status wb_mpi_control_peek(wb_mpi_control *control) {
    if (!control->dead) WB_TRY(read_letters(control));
    return control->dead ? wb_fail(WB_PEER, "%s", control->failure) : WB_OK;
}

wb_status wb_mpi_control_enter(wb_comm *comm, wb_mpi_control *control, wb_mpi_call call) {
    WB_TRY(wb_mpi_control_begin(control, call));
    return wb_mpi_control_hear(comm, control);
}

wb_status wb_mpi_control_look(wb_comm *comm, wb_mpi_control *control) {
    const double now = MPI_Wtime();
    if (control->deadline == 0) control->deadline = now + wb_comm_timeout(comm);
    WB_TRY(read_letters(control));
    if (control->dead) return dead_fail(control);
    if (now > control->deadline || count_heard(comm, control) > 0) return confer(comm, control);
    return WB_OK;
}

wb_status wb_mpi_control_wait(wb_comm *comm, wb_mpi_control *control, MPI_Request *request, int *code_out,
                              MPI_Status *status_out) {
    for (unsigned tests = 1;; tests++) {
        int done = 0;
        const int code = MPI_Test(request, &done, status_out);
        if (done || code != MPI_SUCCESS) {
            *code_out = code;
            return WB_OK;
        }
        if (tests % TESTS_A_LOOK != 0) continue;
        /* Another rank may need this core to come. */
        sched_yield();
        WB_TRY(wb_mpi_control_look(comm, control));
    }
}
