/* hf_oracle.c - this engine against a directory of reference data written by Hugging Face transformers.
 *
 * Owns: the run of one rank and of all of them, the table of what was compared and the verdict as exit
 * code. What is compared: logits, routes and weights (hf_choices.h), forced replay (hf_passes.h), every
 * gradient (hf_gradients.h), the rollout engine's greedy continuation (hf_greedy.h) and, where the
 * directory has them, the logits of the MTP layer that drafts (hf_mtp.h). Refuses: tolerances other than
 * those of hf_limits.h.
 *
 * In f32 limits follow from what roundings come to in this model (hf_noise.h). In bf16 (hf_bounds.h) an
 * expert that is chosen otherwise changes all that follows: so what the reference computed by its own
 * choice is compared under that choice, forced, beside which each row tells what it would choose. The
 * engine goes on from its prompts by itself, and what it captured is compared with the training forward
 * over the same tokens, bit for bit. MTP layers choose by themselves and are compared in f32 alone.
 *
 * DIR is what hf_reference.h reads. */
#include "tools/hf_greedy.h"
#include "tools/hf_limits.h"
#include "tools/hf_mtp.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: hf_oracle [--device cpu|cuda] [--dtype f32|bf16] [--ranks N] [--save OUT] [--plant X] DIR\n"
    "Compares this engine with the reference data in DIR. --ranks N runs N thread ranks, sequences and "
    "experts\n"
    "spread over them; with --device cuda rank r takes GPU r, counted round. --dtype bf16: weights and\n"
    "activations, within bounds that follow from the number of roundings. --save OUT also writes the model\n"
    "again, as a checkpoint (check_hf_load.py reads it). --plant X moves each weight of the middle layer by "
    "X\n"
    "of itself, up or down, which must be found.\n"
    "Exit code: 0 all equal within tolerance, 1 not, 2 usage or unreadable input, 77 bf16 has no limit.\n";

/* ---- layers for multi-token prediction --------------------------------------------------------- */

static void compare_mtp(rank_run *run, const float *first, const float *further) {
    const reference *ref = run->ref;
    const int64_t n_first = (ref->S - 1) * ref->V,
                  n_further = (ref->S - 1 - MTP_FURTHER) * MTP_FURTHER * ref->V;
    for (int64_t s = 0; s < run->n_seqs; s++) {
        const int64_t r = reference_seq(run, s);
        see_floats(&run->outcomes[MTP_LOGITS], n_first, first + s * n_first, ref->mtp_logits + r * n_first);
        see_floats(&run->outcomes[MTP_FURTHER_LOGITS], n_further, further + s * n_further,
                   ref->mtp_further + r * n_further);
    }
}

static wb_status check_mtp(rank_run *run, const int32_t *tokens) {
    const reference *ref = run->ref;
    const size_t rows = (size_t)(run->n_seqs * ref->S * ref->V);
    mtp_run mtp;
    if (!ref->mtp_logits) return WB_OK;
    if (!wb_model_mtp(run->model)) return wb_fail(WB_MISMATCH, "expected a model with MTP layers");
    float *first = allocate(rows, sizeof *first), *further = allocate(MTP_FURTHER * rows, sizeof *further);
    wb_status status = mtp_open(run->model, run->device, run->n_seqs, ref->B, ref->S, tokens, &mtp);
    if (status == WB_OK) status = mtp_logits(&mtp, first, further);
    if (status == WB_OK) compare_mtp(run, first, further);
    mtp_close(&mtp);
    free(first);
    free(further);
    return status;
}

/* ---- the run ------------------------------------------------------------------------------------- */

static wb_status run_checks(rank_run *run) {
    routes r;
    packed p = pack(run, run->ref->input_ids, run->ref->S);
    wb_status status = routes_open(run, p.batch.T, &r);
    if (status == WB_OK) status = find_noise(run, &p, &r);
    if (status == WB_OK) status = check_training(run, &p, &r);
    if (status == WB_OK) status = check_gradients(run);
    if (status == WB_OK) status = check_greedy(run);
    if (status == WB_OK) status = check_mtp(run, p.tokens);
    routes_close(&r);
    unpack(&p);
    return status;
}

/* Ranks share GPUs where there are fewer. */
static wb_status open_device(rank_run *run) {
    const int rank = wb_comm_rank(run->comm), size = wb_comm_size(run->comm);
    if (!run->cuda) return wb_device_open_cpu(size > 1 ? 1 : 0, &run->device);
    const int gpus = wb_device_count_cuda();
    return wb_device_open_cuda(gpus > 0 ? rank % gpus : 0, NULL, &run->device);
}

static void *run_rank(void *ctx) {
    rank_run *run = ctx;
    const int rank = wb_comm_rank(run->comm), size = wb_comm_size(run->comm);
    run->n_seqs = run->ref->B / size + (rank < run->ref->B % size);
    run->verdict = EXIT_UNREADABLE;
    memcpy(run->bounds, run->ref->bounds, sizeof run->bounds);
    wb_status status = open_device(run);
    wb_model_options options = wb_model_options_default();
    options.device = run->device;
    options.comm = run->comm;
    options.dtype = options.activations = run->ref->dtype;
    if (status == WB_OK) status = wb_model_open(run->ref->dir, &options, &run->model);
    if (status == WB_OK) status = wb_train_open(run->model, NULL, &run->train);
    if (status == WB_OK && run->plant > 0)
        status = scatter_weights(run->model, run->device, run->ref->config.n_layers / 2, 1, run->plant);
    if (status == WB_OK) {
        run->verdict = EXIT_DIFFERENT;
        status = run_checks(run);
        if (status == WB_OK && run->save_dir) status = wb_model_save(run->model, run->save_dir);
    }
    if (status == WB_OK)
        run->verdict = EXIT_PASS;
    else {
        fprintf(stderr, "hf_oracle: rank %d: %s\n", rank, wb_error_message());
        wb_comm_abort(run->comm);
    }
    wb_train_close(run->train);
    wb_model_close(run->model);
    wb_device_close(run->device);
    return NULL;
}

static bool ids_are_compared(int check) {
    return check == ROUTER_IDS || check == GREEDY_IDS || check == GREEDY_ROUTES;
}

/* Prints the table; EXIT_PASS when every check passed on every rank. */
static int report(const reference *ref, const rank_run *runs, int n_ranks) {
    outcome all[N_CHECKS] = {0};
    int64_t n_tensors = 0, n_expected = 0;
    double loss = 0, bounds[N_CHECKS] = {0};
    bool derived = false, no_limit = false;
    int verdict = EXIT_PASS;
    for (int r = 0; r < n_ranks; r++) {
        for (int i = 0; i < N_CHECKS; i++) {
            bounds[i] = fmax(bounds[i], runs[r].bounds[i]);
            derived |= bounds[i] > ref->bounds[i];
            no_limit |= runs[r].has_no_limit;
            const outcome *o = &runs[r].outcomes[i];
            all[i].compared += o->compared;
            all[i].error = ids_are_compared(i) ? all[i].error + o->error : fmax(all[i].error, o->error);
        }
        n_tensors += runs[r].n_tensors;
        n_expected += runs[r].n_tensors_expected;
        loss += runs[r].loss;
        if (runs[r].verdict != EXIT_PASS) return runs[r].verdict;
    }
    const float total = (float)loss;
    see_floats(&all[FORCED_LOSS], 1, &total, ref->forced_loss);

    printf("%-16s %10s %12s %10s %-10s\n", "check", "compared", "error", "limit", "");
    for (int i = 0; i < N_CHECKS; i++) {
        if (i >= MTP_LOGITS && !ref->mtp_logits) continue;
        /* In bf16 the engine goes on by itself, and no token is the reference's. */
        const bool compared = all[i].compared > 0 || (i == GREEDY_IDS && ref->dtype != WB_F32);
        const bool is_exact = i == GREEDY_ROUTES || i == ENGINE_LOGPROBS;
        bool ok = compared && (all[i].error <= bounds[i] || (no_limit && !is_exact));
        if (i == GRADIENTS) ok = ok && n_tensors == n_expected;
        printf("%-16s %10" PRId64 " %12.3g %10.3g %-10s %s\n", checks[i].name, all[i].compared, all[i].error,
               bounds[i], checks[i].unit,
               !ok                     ? "FAIL"
               : no_limit && !is_exact ? "NO LIMIT"
                                       : "PASS");
        if (!ok) verdict = EXIT_DIFFERENT;
    }
    printf("tensors with a gradient compared: %" PRId64 " of %" PRId64 "; %zu listed without one\n",
           n_tensors, n_expected, json_array_size(json_object_get(ref->meta, "params_without_grad")));
    if (no_limit)
        printf("bf16 has no limit here: one more rounding of each weight changes a result by more than twice "
               "of it\n");
    if (derived)
        printf(
            "limits above %g: %d times what one more rounding of each weight changes, the most of %d runs\n",
            LEAST_BOUND, NOISE_FACTOR, NOISE_RUNS);
    return verdict == EXIT_PASS && no_limit ? EXIT_NO_LIMIT : verdict;
}

int main(int argc, char **argv) {
    int n_ranks = 1;
    double plant = 0;
    const char *dir = NULL, *save_dir = NULL, *device = "cpu", *dtype = "f32";
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            fputs(usage, stdout);
            return EXIT_PASS;
        }
        if (strcmp(argv[i], "--ranks") == 0 && i + 1 < argc) {
            n_ranks = atoi(argv[++i]);
        } else if (strcmp(argv[i], "--device") == 0 && i + 1 < argc) {
            device = argv[++i];
        } else if (strcmp(argv[i], "--dtype") == 0 && i + 1 < argc) {
            dtype = argv[++i];
        } else if (strcmp(argv[i], "--save") == 0 && i + 1 < argc) {
            save_dir = argv[++i];
        } else if (strcmp(argv[i], "--plant") == 0 && i + 1 < argc) {
            plant = atof(argv[++i]);
        } else if (argv[i][0] != '-' && !dir) {
            dir = argv[i];
        } else {
            n_ranks = 0;
        }
    }
    const bool cuda = strcmp(device, "cuda") == 0, bf16 = strcmp(dtype, "bf16") == 0;
    if (!dir || (!bf16 && strcmp(dtype, "f32") != 0) || n_ranks < 1 || n_ranks > 64 ||
        (!cuda && strcmp(device, "cpu") != 0)) {
        fputs(usage, stderr);
        return EXIT_UNREADABLE;
    }

    reference ref;
    reference_open(dir, bf16 ? WB_BF16 : WB_F32, &ref);
    find_bounds(&ref);
    wb_comm *comms[64];
    pthread_t threads[64];
    rank_run *runs = allocate((size_t)n_ranks, sizeof(rank_run));
    if (wb_comm_open_threads(n_ranks, comms) != WB_OK) die("%s", wb_error_message());
    for (int r = 0; r < n_ranks; r++) {
        runs[r].ref = &ref;
        runs[r].save_dir = save_dir;
        runs[r].plant = plant;
        runs[r].cuda = cuda;
        runs[r].comm = comms[r];
        if (pthread_create(&threads[r], NULL, run_rank, &runs[r]) != 0) die("no thread for rank %d", r);
    }
    for (int r = 0; r < n_ranks; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < n_ranks; r++) wb_comm_close(comms[r]);
    const int verdict = report(&ref, runs, n_ranks);
    free(runs);
    reference_close(&ref);
    return verdict;
}
