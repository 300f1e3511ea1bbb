/* mpi_mailbox_cuda.c - rows between mailboxes of GPUs (wb_mailbox.h) under mpirun: random plans, one exchange
 * after the other, op by op and as a graph; every row arrives where its slot and its rank say, and comes back
 * to its place. Then a rank that is late, or killed, is named by the others in bounded time, and one that
 * gives up at once. Ranks beyond the GPUs share them. All ranks exit with the same verdict; 77, with the
 * reason, without a GPU.
 *
 * Usage: mpi_mailbox_cuda [seed [killed]]: the second kills the last rank in its exchanges, no more. */
#include "gpu_ranks.h"
#include "support/test_seed.h"
#include "wb_comm_mpi.h"
#include "wb_random.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SKIP = 77, MAX_SLOTS = 24, EXCHANGES = 6, TRIALS = 12, POISON = 0x5b };
#define CLOSE_SECONDS 20.0

static void *take(size_t count, size_t size) {
    void *memory = calloc(count > 0 ? count : 1, size);
    if (!memory) MPI_Abort(MPI_COMM_WORLD, 1);
    return memory;
}

/* ---- a trial ------------------------------------------------------------------------------------- */

/* What a rank sends in an exchange, which every rank can make for every other one. */
typedef struct plan {
    int32_t offsets[MAX_SLOTS + 1], *row_token;
    int64_t T;
    uint8_t *x; /* [T, width] */
} plan;

typedef struct trial {
    wb_device *dev;
    wb_mailboxes boxes;
    wb_shared_memory *shared;
    uint64_t seed;
    int64_t max_T;
    /* device */
    void *x, *row_token, *offsets, *places, *grouped, *rows;
} trial;

static uint64_t draw(uint64_t *random, uint64_t n) {
    return wb_random(random) % n;
}

static int64_t slots_of(const trial *t, int32_t r) {
    return t->boxes.first_slot[r + 1] - t->boxes.first_slot[r];
}

/* Rows by slot, of random tokens: as moe_plan leaves them, and sometimes none, or all for one slot. */
static plan make_plan(const trial *t, int32_t of, uint64_t exchange) {
    plan p = {.row_token = take((size_t)t->boxes.max_rows, sizeof(int32_t))};
    const int32_t S = t->boxes.first_slot[ranks];
    uint64_t random = wb_mix64(t->seed) + 64 * exchange + (uint64_t)of;
    const size_t row_bytes = wb_mailbox_row_bytes(&t->boxes);
    p.T = (int64_t)draw(&random, (uint64_t)t->max_T + 1);
    const int64_t most = p.T > 0 ? t->boxes.max_rows : 0, kind = (int64_t)draw(&random, 5);
    const int32_t n = (int32_t)(kind == 0   ? 0
                                : kind == 1 ? most
                                            : (int64_t)draw(&random, (uint64_t)most + 1));
    const int32_t only = kind == 2 ? (int32_t)draw(&random, (uint64_t)S) : -1;
    for (int32_t i = 0; i < n; i++) p.offsets[1 + (only < 0 ? (int32_t)draw(&random, (uint64_t)S) : only)]++;
    for (int32_t s = 0; s < S; s++) p.offsets[s + 1] += p.offsets[s];
    for (int32_t i = 0; i < n; i++) p.row_token[i] = (int32_t)draw(&random, (uint64_t)p.T);
    p.x = take((size_t)t->max_T, row_bytes);
    for (size_t i = 0; i < (size_t)p.T * row_bytes; i++) p.x[i] = (uint8_t)wb_random(&random);
    return p;
}

static void free_plan(plan *p) {
    free(p->row_token);
    free(p->x);
}

static wb_rows rows_at(const trial *t, void *data) {
    return (wb_rows){data, t->boxes.dtype};
}

/* The four ops; between them each row is copied, which stands for its expert. */
static wb_status exchange(trial *t) {
    const wb_mailboxes *p = &t->boxes;
    wb_device *dev = t->dev;
    const int64_t n = (int64_t)ranks * p->max_rows;
    WB_TRY(dev->mailbox_send(dev, p, p->max_rows, t->row_token, t->offsets, rows_at(t, t->x)));
    WB_TRY(dev->mailbox_receive(dev, p, t->grouped, t->places));
    WB_TRY(dev->gather_rows(dev, n, p->width, t->places, rows_at(t, wb_mailbox_row(p, rank, 0)),
                            rows_at(t, t->rows)));
    WB_TRY(dev->mailbox_return(dev, p, n, t->grouped, t->places, rows_at(t, t->rows)));
    return dev->mailbox_wait(dev, p);
}

/* What a start needs: the plan is there, and what is to be written holds other bytes. */
static void put_plan(trial *t, const plan *own) {
    const wb_mailboxes *p = &t->boxes;
    const size_t row = wb_mailbox_row_bytes(p), n = (size_t)p->max_rows;
    const size_t largest = (size_t)ranks * n * (row > 4 ? row : 4);
    wb_device *dev = t->dev;
    uint8_t *poison = take(largest, 1);
    memset(poison, POISON, largest);
    must(dev->to_device(dev, t->x, own->x, (size_t)t->max_T * row));
    must(dev->to_device(dev, t->row_token, own->row_token, n * sizeof(int32_t)));
    must(dev->to_device(dev, t->offsets, own->offsets, sizeof own->offsets));
    must(dev->to_device(dev, t->rows, poison, (size_t)ranks * n * row));
    /* Whatever a gather of rows that are not there reads, it is a row. */
    must(dev->zero(dev, t->places, (size_t)ranks * n * sizeof(int32_t)));
    must(dev->to_device(dev, t->grouped, poison, (MAX_SLOTS + 1) * sizeof(int32_t)));
    must(dev->to_device(dev, wb_mailbox_output(p, rank, 0), poison, n * row));
    must(dev->to_host(dev, NULL, NULL, 0));
    free(poison);
}

/* By slot, then source, then the source's order. */
static void check_received(trial *t, const plan *plans) {
    const wb_mailboxes *p = &t->boxes;
    const size_t row_bytes = wb_mailbox_row_bytes(p);
    int32_t grouped[MAX_SLOTS + 1], row = 0;
    bool offsets = true, contents = true;
    uint8_t *found = take((size_t)ranks * (size_t)p->max_rows, row_bytes);
    must(t->dev->to_host(t->dev, grouped, t->grouped, sizeof grouped));
    must(t->dev->to_host(t->dev, found, t->rows, (size_t)ranks * (size_t)p->max_rows * row_bytes));
    for (int32_t s = p->first_slot[rank]; s < p->first_slot[rank + 1]; s++) {
        offsets = offsets && grouped[s - p->first_slot[rank]] == row;
        for (int32_t r = 0; r < ranks; r++)
            for (int32_t i = plans[r].offsets[s]; i < plans[r].offsets[s + 1]; i++, row++)
                contents = contents &&
                           memcmp(found + (size_t)row * row_bytes,
                                  plans[r].x + (size_t)plans[r].row_token[i] * row_bytes, row_bytes) == 0;
    }
    check(offsets && grouped[slots_of(t, rank)] == row, "the offsets of the slots");
    check(contents, "the rows of all ranks, in order");
    free(found);
}

static void check_returned(trial *t, const plan *own) {
    const wb_mailboxes *p = &t->boxes;
    const size_t row_bytes = wb_mailbox_row_bytes(p), n = (size_t)p->max_rows;
    const int32_t sent = own->offsets[p->first_slot[ranks]];
    bool contents = true, rest = true;
    uint8_t *found = take(n, row_bytes);
    must(t->dev->to_host(t->dev, found, wb_mailbox_output(p, rank, 0), n * row_bytes));
    for (int32_t i = 0; i < sent; i++)
        contents = contents && memcmp(found + (size_t)i * row_bytes,
                                      own->x + (size_t)own->row_token[i] * row_bytes, row_bytes) == 0;
    for (size_t i = (size_t)sent * row_bytes; i < n * row_bytes; i++) rest = rest && found[i] == POISON;
    check(contents, "each row back in its place");
    check(rest, "nothing behind the last row");
    free(found);
}

/* ---- opening ------------------------------------------------------------------------------------- */

static void *device_memory(trial *t, size_t bytes) {
    void *memory = NULL;
    must(t->dev->mem_alloc(t->dev, bytes, &memory));
    return memory;
}

/* Whether all ranks reach each other. */
static bool open_mailboxes(trial *t) {
    wb_shared_memory own;
    int failed = 0, any = 0;
    t->shared = take((size_t)ranks, sizeof *t->shared);
    must(t->dev->memory_share(t->dev, wb_mailbox_bytes(&t->boxes), &t->boxes.mailbox[rank], &own));
    MPI_Allgather(&own, (int)sizeof own, MPI_BYTE, t->shared, (int)sizeof own, MPI_BYTE, MPI_COMM_WORLD);
    for (int r = 0; r < ranks && !failed; r++)
        if (r != rank)
            failed = t->dev->memory_attach(t->dev, &t->shared[r], rank, &t->boxes.mailbox[r]) != WB_OK;
    if (failed) printf("rank %d: %s\n", rank, wb_error_message());
    MPI_Allreduce(&failed, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    return any == 0;
}

static bool open_trial(trial *t, wb_device *dev, uint64_t seed, double timeout) {
    static const int64_t widths[] = {1, 2, 7, 8, 24, 256, 2048};
    uint64_t random = wb_mix64(seed);
    *t = (trial){.dev = dev, .seed = seed, .max_T = 1 + (int64_t)draw(&random, 60)};
    wb_mailboxes *p = &t->boxes;
    *p = (wb_mailboxes){.rank = rank, .n_ranks = ranks, .timeout = timeout};
    p->max_rows = t->max_T * (1 + (int64_t)draw(&random, 8));
    p->width = widths[draw(&random, 7)];
    p->dtype = draw(&random, 2) ? WB_BF16 : WB_F32;
    for (int r = 0; r < ranks; r++) p->first_slot[r + 1] = p->first_slot[r] + (int32_t)draw(&random, 6);
    /* At least one slot. */
    if (p->first_slot[ranks] == 0) p->first_slot[ranks] = 1;
    const size_t row = wb_mailbox_row_bytes(p), n = (size_t)p->max_rows, all = (size_t)ranks * n;
    t->x = device_memory(t, (size_t)t->max_T * row);
    t->row_token = device_memory(t, n * sizeof(int32_t));
    t->offsets = device_memory(t, (MAX_SLOTS + 1) * sizeof(int32_t));
    t->grouped = device_memory(t, (MAX_SLOTS + 1) * sizeof(int32_t));
    t->places = device_memory(t, all * sizeof(int32_t));
    t->rows = device_memory(t, all * row);
    return open_mailboxes(t);
}

static void close_trial(trial *t) {
    void *const own[] = {t->x, t->row_token, t->offsets, t->grouped, t->places, t->rows};
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) t->dev->mem_free(t->dev, own[i]);
    for (int r = 0; r < ranks; r++)
        if (r != rank) t->dev->memory_detach(t->dev, &t->shared[r], rank, t->boxes.mailbox[r]);
    t->dev->memory_unshare(t->dev, t->boxes.mailbox[rank], CLOSE_SECONDS);
    free(t->shared);
}

/* ---- what is tried --------------------------------------------------------------------------------- */

/* The first exchange op by op, the second one as it is captured, later ones as launches of that graph. */
static void run_exchanges(trial *t) {
    void *graph = NULL;
    plan plans[WB_MAX_MAILBOXES];
    for (uint64_t e = 0; e < EXCHANGES; e++) {
        for (int32_t r = 0; r < ranks; r++) plans[r] = make_plan(t, r, e);
        put_plan(t, &plans[rank]);
        /* Nobody's poison comes after another's rows. */
        MPI_Barrier(MPI_COMM_WORLD);
        if (e == 1) {
            must(t->dev->graph_begin(t->dev));
            must(exchange(t));
            must(t->dev->graph_end(t->dev, &graph));
        }
        must(graph ? t->dev->graph_launch(t->dev, graph) : exchange(t));
        check_received(t, plans);
        check_returned(t, &plans[rank]);
        for (int32_t r = 0; r < ranks; r++) free_plan(&plans[r]);
        MPI_Barrier(MPI_COMM_WORLD);
    }
    t->dev->graph_free(t->dev, graph);
}

/* The last rank comes too late, or never: an exchange of the others is a failure that names it, soon, and so
 * is every later one, at once. */
static void run_late(trial *t, bool kills) {
    plan own = make_plan(t, rank, 0);
    char name[64];
    const double begin = MPI_Wtime();
    put_plan(t, &own);
    MPI_Barrier(MPI_COMM_WORLD);
    must(exchange(t));
    must(t->dev->to_host(t->dev, NULL, NULL, 0));
    if (rank == ranks - 1 && kills) raise(SIGKILL);
    if (rank < ranks - 1) {
        wb_status status = WB_OK;
        for (int i = 0; i < 40; i++) must(exchange(t));
        status = t->dev->to_host(t->dev, NULL, NULL, 0);
        snprintf(name, sizeof name, "waited %g s: rank %d did not come", t->boxes.timeout, ranks - 1);
        check(status == WB_PEER && strstr(wb_error_message(), name), "the late rank's name");
        must(exchange(t));
        check(t->dev->to_host(t->dev, NULL, NULL, 0) == WB_PEER, "no exchange after that");
        check(MPI_Wtime() - begin < 3 * t->boxes.timeout + 2, "an end in bounded time");
    }
    free_plan(&own);
}

/* The last rank gives up instead of an exchange, with its reason. The others, whose exchange would wait for a
 * minute, hear it while they wait for their device. */
static void run_given_up(trial *t) {
    wb_comm *comm = NULL;
    wb_status status;
    void *event = NULL, *word = NULL;
    bool come = false;
    plan own = make_plan(t, rank, 0);
    put_plan(t, &own);
    must(wb_comm_open_mpi(MPI_COMM_WORLD, &comm));
    must(t->dev->event_open(t->dev, &event));
    must(t->dev->host_alloc(t->dev, 4, &word));
    MPI_Barrier(MPI_COMM_WORLD);
    const double begin = MPI_Wtime();
    if (rank == ranks - 1) {
        WB_IGNORE(wb_fail(WB_DEVICE, "mpi_mailbox_cuda: no more of it"));
        wb_comm_abort(comm);
    } else {
        for (int i = 0; i < 40; i++) must(exchange(t));
        must(t->dev->start_to_host(t->dev, word, t->x, 4, event));
        for (status = WB_OK; status == WB_OK && !come; status = wb_comm_look(comm))
            must(t->dev->event_look(t->dev, event, &come));
        check(!come && status == WB_PEER, "a rank that is heard while the device waits");
        t->dev->lose(t->dev, wb_error_message());
        status = t->dev->event_wait(t->dev, event);
        check(status == WB_PEER && strstr(wb_error_message(), "no more of it"), "its reason");
        check(MPI_Wtime() - begin < 5, "an end at once");
        must(exchange(t));
        status = t->dev->to_host(t->dev, NULL, NULL, 0);
        check(status == WB_PEER && strstr(wb_error_message(), "another rank gave up"),
              "no exchange after that");
    }
    t->dev->event_close(t->dev, event);
    t->dev->host_free(t->dev, word);
    MPI_Barrier(MPI_COMM_WORLD);
    wb_comm_close(comm);
    free_plan(&own);
}

/* As a program does that has lost a rank: MPI_Finalize would wait for it. */
static void run_killed(trial *t) {
    run_late(t, true);
    printf("rank %d of %d %s: %s\n", rank, ranks, failures == 0 ? "survived" : "failed", wb_error_message());
    fflush(NULL);
    _exit(failures == 0 ? 0 : 1);
}

static int run(wb_device *dev, uint64_t seed, bool killed) {
    trial t;
    if (!open_trial(&t, dev, seed, 1)) return SKIP;
    if (killed) run_killed(&t);
    run_late(&t, false);
    MPI_Barrier(MPI_COMM_WORLD);
    close_trial(&t);
    if (!open_trial(&t, dev, seed + 1, 60)) return SKIP;
    run_given_up(&t);
    close_trial(&t);
    for (uint64_t i = 0; i < TRIALS && open_trial(&t, dev, seed + i, 60); i++) {
        run_exchanges(&t);
        close_trial(&t);
    }
    return 0;
}

int main(int argc, char **argv) {
    int none = 0, any = 0, code = SKIP;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    uint64_t seed = test_seed(argc, argv);
    MPI_Bcast(&seed, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    alarm(120);
    wb_device *dev = open_device();
    const int lacks = !dev || !dev->memory_share || !dev->graph_begin;
    MPI_Allreduce(&lacks, &none, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    if (rank == 0) printf(none ? "skip: no CUDA device\n" : "mpi_mailbox_cuda: seed %" PRIu64 "\n", seed);
    if (!none && ranks >= 2) code = run(dev, seed, argc > 2 && strcmp(argv[2], "killed") == 0);
    if (rank == 0 && !none && code == SKIP) printf("skip: expected 2 ranks or more that reach each other\n");
    MPI_Allreduce(&failures, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    wb_device_close(dev);
    MPI_Finalize();
    return any > 0 ? 1 : code;
}
