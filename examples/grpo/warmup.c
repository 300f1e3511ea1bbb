/* warmup.c - the base checkpoint: a tiny Mixture-of-Experts model and a short supervised training on the
 * arithmetic task, enough to be right now and then, which is what reinforcement learning needs to start
 * from. */
#include "grpo.h"
#include "wb_file.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

enum { EXAMPLES = 256 }; /* a step, over all ranks */
static const double warmup_rate = 3e-3;

/* Of few positions, as the task's answers are short; a layer of each kind, the first by a table. */
static void set_entries(wb_config *c) {
    c->window = 8;
    c->compressed.heavy_rate = 6;
    c->compressed.index_top_k = 2;
    c->compressed.sparse_layer_mask[0] = 10;
    c->compressed.heavy_layer_mask[0] = 4;
    c->hash_layer_mask[0] = 1;
}

/* Weights of choices are normalised where the family may have it so: without, a tiny model learns slowly. */
static wb_status tiny_config(wb_family family, wb_config *config_out) {
    wb_config c = {.family = family,
                   .hidden_size = 64,
                   .n_layers = 4,
                   .n_heads = 4,
                   .n_kv_heads = 2,
                   .head_dim = 16,
                   .expert_width = 32,
                   .dense_width = 128,
                   .vocab_size = TASK_VOCABULARY,
                   .max_positions = 128,
                   .router = {.n_experts = 16, .top_k = 4}};
    WB_TRY(wb_config_complete(&c));
    c.norm_eps = 1e-6f;
    if (family == WB_FAMILY_QWEN3_MOE) c.router.type = WB_ROUTER_SOFTMAX_NORM;
    if (family == WB_FAMILY_DEEPSEEK_V3) { /* one dense layer, of three, and groups of four experts */
        c.moe_layer_mask[0] = 14;
        c.router.n_group = 4;
        c.router.topk_group = 2;
        c.router.scale = 2.5f;
    }
    if (family == WB_FAMILY_DEEPSEEK_V4) set_entries(&c);
    *config_out = c;
    return WB_OK;
}

typedef struct examples {
    int64_t T, answers; /* answer tokens */
    int32_t n_seqs;
    int32_t tokens[EXAMPLES * TASK_MAX_TOKENS], targets[EXAMPLES * TASK_MAX_TOKENS], seq_start[EXAMPLES + 1];
    float logprobs[EXAMPLES * TASK_MAX_TOKENS], gradients[EXAMPLES * TASK_MAX_TOKENS];
} examples;

/* This rank's share of the step's examples. */
static void make_examples(examples *x, const options *o, int64_t step, const wb_comm *comm) {
    x->T = x->answers = x->n_seqs = 0;
    for (int64_t i = wb_comm_rank(comm); i < EXAMPLES; i += wb_comm_size(comm)) {
        uint32_t tokens[TASK_MAX_TOKENS], prompt_len;
        uint32_t n = task_arithmetic_example(~o->seed, (uint64_t)(step * EXAMPLES + i), tokens, &prompt_len);
        x->seq_start[x->n_seqs++] = (int32_t)x->T;
        for (uint32_t p = 0; p + 1 < n; p++, x->T++) {
            x->tokens[x->T] = (int32_t)tokens[p];
            x->targets[x->T] = p + 1 >= prompt_len ? (int32_t)tokens[p + 1] : -1;
            x->answers += p + 1 >= prompt_len;
        }
    }
    x->seq_start[x->n_seqs] = (int32_t)x->T;
}

static wb_status warmup_step(const options *o, wb_train *train, optimizer *opt, wb_comm *comm, void *ids,
                             examples *x, int64_t step, double *loss_out) {
    make_examples(x, o, step, comm);
    wb_train_batch fed = {.T = x->T,
                          .tokens = x->tokens,
                          .targets = x->targets,
                          .n_seqs = x->n_seqs,
                          .seq_start = x->seq_start};
    wb_routing routing = {.ids = ids};
    WB_TRY(wb_train_forward(train, &fed, &routing, NULL, x->logprobs));
    double sums[2] = {0, (double)x->answers};
    for (int64_t t = 0; t < x->T; t++) sums[0] -= x->logprobs[t];
    WB_TRY(wb_comm_all_reduce_f64(comm, sums, 2));
    for (int64_t t = 0; t < x->T; t++) x->gradients[t] = (float)(-1 / sums[1]);
    WB_TRY(wb_train_zero_grads(train));
    WB_TRY(wb_train_backward_last(train, x->gradients));
    double norm, progress = (double)step / (double)o->warmup_steps;
    *loss_out = sums[0] / sums[1];
    return optimizer_step(opt, o, warmup_rate * (1 - 0.9 * progress), NULL, &norm);
}

/* *signal_out: not 0 when the steps ended early, because some rank was told to stop. */
static wb_status run_warmup(const options *o, wb_model *model, wb_train *train, optimizer *opt, report *r,
                            int *signal_out) {
    wb_comm *comm = wb_model_comm(model);
    size_t row_bytes = wb_route_row_bytes(wb_model_routes(model));
    wb_workspace workspace = {.device = wb_model_device(model)};
    wb_buffer ids = {0};
    examples *x = NULL;
    wb_status status = wb_reserve(&workspace, &ids, EXAMPLES * TASK_MAX_TOKENS, (int64_t)row_bytes, 1);
    if (status == WB_OK) status = WB_OWN(&workspace.host, x, 1, "examples");
    for (int64_t step = 0; status == WB_OK && *signal_out == 0 && step < o->warmup_steps; step++) {
        double loss = 0;
        status = warmup_step(o, train, opt, comm, ids.data, x, step, &loss);
        report_progress(r, 0, "warm-up", (step + 1) * x->T, o->warmup_steps * x->T);
        if (status == WB_OK && (step + 1) % 100 == 0)
            report_line(r, "warm-up %4" PRId64 "/%" PRId64 "  loss %.3f", step + 1, o->warmup_steps, loss);
        if (status == WB_OK) status = interrupt_agree(comm, signal_out);
    }
    wb_workspace_close(&workspace);
    return status;
}

/* The folder is made before the minutes of training, so that a path that cannot be one, or that has
 * somebody's files, is said at once. */
static wb_status make_folder(const options *o, out_lock **lock) {
    WB_TRY(wb_dir_create(o->make_base));
    WB_TRY(out_lock_take(o->make_base, lock));
    if (out_lock_is_alone(o->make_base)) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: expected a new or an empty folder, found files in it",
                   o->make_base);
}

static wb_status make_base(const options *o, wb_device *device, wb_comm *comm, report *r, int *signal_out) {
    wb_config config;
    WB_TRY(tiny_config(o->family, &config));
    wb_model_options model_options = wb_model_options_default();
    model_options.device = device;
    model_options.comm = comm;
    wb_model *model;
    WB_TRY(wb_model_create(&config, o->seed, 0.08f, &model_options, &model));
    wb_train_options train_options = wb_train_options_default();
    train_options.max_tokens = EXAMPLES * TASK_MAX_TOKENS;
    wb_train *train = NULL;
    optimizer opt = {0};
    wb_status status;
    WB_GOTO(wb_train_open(model, &train_options, &train), close_model);
    WB_GOTO(optimizer_open(model, train, device, comm, &opt), close_train);
    WB_GOTO(run_warmup(o, model, train, &opt, r, signal_out), close_optimizer);
    if (*signal_out != 0) goto close_optimizer;
    status = wb_model_save(model, o->make_base);
    if (status == WB_OK) report_line(r, "base checkpoint: %s", o->make_base);
close_optimizer:
    optimizer_close(&opt);
close_train:
    wb_train_close(train);
close_model:
    wb_model_close(model);
    return status;
}

wb_status warmup_make_base(const options *o, wb_device *device, wb_comm *comm, report *r, int *signal_out) {
    out_lock *lock = NULL;
    bool was_there = access(o->make_base, F_OK) == 0;
    wb_status status = wb_comm_rank(comm) == 0 ? make_folder(o, &lock) : WB_OK;
    if (status != WB_OK) wb_fail_context(status, "--make-base");
    status = wb_comm_agree(comm, status);
    if (status == WB_OK) status = make_base(o, device, comm, r, signal_out);
    bool locked = lock != NULL;
    out_lock_release(lock);
    /* One with files in it stays. */
    if (locked && !was_there && (status != WB_OK || *signal_out != 0)) rmdir(o->make_base);
    if (*signal_out != 0)
        report_line(r, "stopped by signal %d (%s): no base checkpoint is made", *signal_out,
                    strsignal(*signal_out));
    return status;
}
