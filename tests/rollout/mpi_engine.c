/* mpi_engine.c - the engine under mpirun: each rank submits its share of one set of requests and holds its
 * share of the experts; tokens, logprobs and rows equal those of each request alone in an engine of one
 * rank with the whole model, bit for bit. Some rounds leave ranks without any request but those that they
 * take from others. Then rounds in f32 and bf16 in which the weights change on the way. `mpi_engine SEED`
 * reruns a seed of either. */
#include "changing_weights.h"
#include "wb_comm_mpi.h"

#include <unistd.h>

#define N_ROUNDS 6
#define N_REQUESTS 9
#define FIRST_SEED 880

typedef struct round_plan {
    wb_config config;
    ask asks[N_REQUESTS];
    uint32_t rank[N_REQUESTS]; /* who submits it ... */
    uint64_t step[N_REQUESTS]; /* ... before which step */
    wb_engine_options options; /* of this rank */
    bool done[N_REQUESTS];
} round_plan;

/* The same requests on every rank, engine options of its own. */
static void make_round(round_plan *p, uint64_t seed, const wb_comm *comm) {
    dice d = {seed};
    memset(p, 0, sizeof *p);
    const wb_family family = pick_family(&d);
    p->config =
        tiny_config(family, (int32_t)pick(&d, 3, 20), (int32_t)pick(&d, 1, 3), (int32_t)pick(&d, 1, 3), 0);
    const uint32_t busy_ranks = pick(&d, 1, (uint32_t)wb_comm_size(comm));
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        p->asks[i] = ask_random(&d, i, (uint32_t)p->config.vocab_size, 16, 16);
        p->rank[i] = pick(&d, 0, busy_ranks - 1);
        p->step[i] = pick(&d, 0, 12);
    }
    p->options = wb_engine_options_default();
    p->options.max_batch_tokens = (int32_t)pick(&d, 1, 24); /* the same on all ranks */
    p->options.lend_requests = pick(&d, 0, 2) > 0;
    d.state += (uint64_t)wb_comm_rank(comm);
    p->options.block_size = (int32_t)pick(&d, 1, 6);
    p->options.n_blocks = (31 + p->options.block_size - 1) / p->options.block_size + (int32_t)pick(&d, 0, 6);
    p->options.max_running = (int32_t)pick(&d, 1, 6);
}

static int compare(round_plan *p, wb_model *whole, const wb_completion *found, uint64_t seed, int rank) {
    const uint32_t i = (uint32_t)strtoul(found->record.rid + 1, NULL, 10);
    wb_completion *alone = run_alone(whole, &p->asks[i]);
    const char *what = difference(wb_model_routes(whole), alone, found);
    if (what)
        fprintf(stderr, "seed %" PRIu64 ", rank %d, request %s: %s differ from one rank's\n", seed, rank,
                found->record.rid, what);
    wb_completion_free(alone);
    p->done[i] = true;
    return what != NULL;
}

static int run_round(uint64_t seed, wb_comm *comm) {
    round_plan *p = take(1, sizeof *p);
    make_round(p, seed, comm);
    rig sharded = rig_open(&p->config, seed, 1, comm), whole = rig_open(&p->config, seed, 1, NULL);
    wb_engine *engine = NULL;
    must(wb_engine_open(sharded.model, &p->options, &engine), "engine");
    int failures = 0;
    bool busy = true;
    for (uint64_t step = 0; step <= 12 || busy; step++) {
        for (uint32_t i = 0; i < N_REQUESTS; i++)
            if (p->rank[i] == (uint32_t)wb_comm_rank(comm) && p->step[i] == step)
                must(wb_engine_submit(engine, ask_request(&p->asks[i])), "submit");
        must(wb_engine_step(engine, &busy), "step");
    }
    for (wb_completion *c = wb_engine_poll(engine); c; c = wb_engine_poll(engine)) {
        failures += compare(p, whole.model, c, seed, wb_comm_rank(comm));
        wb_completion_free(c);
    }
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        if (p->done[i] != (p->rank[i] == (uint32_t)wb_comm_rank(comm))) {
            fprintf(stderr, "seed %" PRIu64 ", rank %d, request %" PRIu32 ": lost or not its own\n", seed,
                    wb_comm_rank(comm), i);
            failures++;
        }
    wb_engine_close(engine);
    rig_close(&whole);
    rig_close(&sharded);
    free(p);
    return failures;
}

int main(int argc, char **argv) {
    alarm(120); /* a hang is a failure */
    MPI_Init(&argc, &argv);
    wb_comm *comm = NULL;
    must(wb_comm_open_mpi(MPI_COMM_WORLD, &comm), "MPI communicator");
    const uint64_t first = argc == 2 ? strtoull(argv[1], NULL, 10) : FIRST_SEED;
    const uint64_t n = argc == 2 ? 1 : N_ROUNDS;
    int failures = 0, any = 0;
    changing_totals totals = {0};
    for (uint64_t seed = first; seed < first + n; seed++) {
        failures += run_round(seed, comm);
        failures += changing_weights(seed, comm, &totals);
    }
    if (wb_comm_rank(comm) == 0)
        printf("mpi_engine: %d ranks, seeds %" PRIu64 "..%" PRIu64 "\n", wb_comm_size(comm), first,
               first + n - 1);
    wb_comm_close(comm);
    MPI_Allreduce(&failures, &any, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Finalize();
    return any == 0 ? 0 : 1;
}
