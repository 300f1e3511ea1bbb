/* memory_plan.c - what each rank of a run would take, by what it is for: on its device what the sizes of
 * open_sizes.c lead to, as the library measures it, and on its host what a step's samples and a checkpoint
 * need at most. Refuses: opening a device or a communicator, and reading weights. */
#include "open_sizes.h"
#include "wb_checkpoint_dir.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PARTS = 48 };

typedef struct plan_part {
    const char *of, *name; /* static */
    size_t bytes;
} plan_part;

/* One rank's memory of one kind. */
typedef struct part_list {
    plan_part parts[MAX_PARTS];
    int n;
    size_t bytes; /* of all parts */
} part_list;

typedef struct rank_plan {
    part_list device, host;
    size_t scratch_bytes; /* of the device's ops, which share it: the largest so far */
} rank_plan;

/* Ranks of one kind take the same. */
typedef struct rank_kind {
    int64_t slots, homes; /* of a layer: of its own, and experts whose home it is */
    int64_t is_first;     /* it is rank 0 */
} rank_kind;

typedef struct kind_plan {
    rank_kind kind;
    rank_plan plan;
} kind_plan;

/* What all ranks have in common. */
typedef struct plan_model {
    const options *o;
    wb_config config;
    int32_t n_ranks;
    wb_placement *placement; /* of policy and rollout; NULL: the default one */
    size_t companion_bytes;  /* of rank 0 */
    kind_plan *kinds;        /* [n_kinds] seen so far */
    size_t n_kinds, max_kinds;
} plan_model;

static void add(part_list *list, const char *of, const char *name, size_t bytes) {
    if (bytes == 0) return;
    list->parts[list->n++] = (plan_part){of, name, bytes};
    list->bytes += bytes;
}

static void add_measured(rank_plan *plan, const char *of, const char *host_name, const wb_memory *memory) {
    for (int32_t i = 0; i < memory->n_parts; i++)
        add(&plan->device, of, memory->parts[i].name, memory->parts[i].bytes);
    add(&plan->host, of, host_name, memory->host_bytes);
    const size_t scratch = wb_scratch_bytes_cuda(&memory->ops);
    if (scratch > plan->scratch_bytes) plan->scratch_bytes = scratch;
}

/* ---- the device -------------------------------------------------------------------------------- */

/* Ranks are taken to reach each other's memory, as GPUs of one host do. */
static wb_status measure_mailbox(const plan_model *m, const char *of, const wb_model_options *model,
                                 rank_plan *plan) {
    size_t bytes;
    if (m->o->device != WB_BACKEND_CUDA) return WB_OK;
    WB_TRY(wb_model_measure_mailbox(&m->config, model, m->n_ranks, &bytes));
    add(&plan->device, of, "mailbox", bytes);
    return WB_OK;
}

static wb_status measure_trainer(const plan_model *m, const char *of, bool forward_only, int32_t rank,
                                 rank_plan *plan) {
    const wb_model_options model = sizes_policy(m->o, NULL, NULL, forward_only ? NULL : m->placement);
    const wb_train_options train = sizes_train(m->o, &m->config, forward_only);
    wb_memory memory;
    WB_TRY(wb_model_measure(&m->config, &model, m->n_ranks, rank, &memory));
    add_measured(plan, of, "tables", &memory);
    WB_TRY(measure_mailbox(m, of, &model, plan));
    WB_TRY(wb_train_measure(&m->config, &model, &train, m->n_ranks, rank, &memory));
    add_measured(plan, of, "workspace", &memory);
    return WB_OK;
}

/* What experts need on their way from the policy to where the rollout has them; elsewhere both have them in
 * the same places when weights are copied. */
static wb_status measure_copy(const plan_model *m, const wb_model_options *rollout, int32_t rank,
                              rank_plan *plan) {
    const wb_model_options policy = sizes_policy(m->o, NULL, NULL, m->placement);
    size_t bytes;
    if (m->o->eplb != EPLB_PLANNED) return WB_OK;
    WB_TRY(wb_model_measure_copy(&m->config, rollout, &policy, m->n_ranks, rank, &bytes));
    add(&plan->device, "rollout", "copy of weights", bytes);
    return WB_OK;
}

/* The copy of the policy that --rollout-bits rounds, on its way to the engine, and the matrix at hand. */
static wb_status measure_rounded(const plan_model *m, int32_t rank, rank_plan *plan) {
    const wb_model_options policy = sizes_policy(m->o, NULL, NULL, m->placement);
    const wb_model_options rounded = sizes_rounded(NULL, NULL, m->placement);
    const size_t vocabulary = (size_t)m->config.vocab_size * (size_t)m->config.hidden_size;
    wb_memory memory;
    size_t copy;
    if (m->o->rollout_bits == 0) return WB_OK;
    WB_TRY(wb_model_measure(&m->config, &rounded, m->n_ranks, rank, &memory));
    add_measured(plan, "quantised", "tables", &memory);
    WB_TRY(wb_model_measure_copy(&m->config, &rounded, &policy, m->n_ranks, rank, &copy));
    add(&plan->device, "quantised", "copy of weights", copy);
    add(&plan->host, "quantised", "matrix", vocabulary * sizeof(float));
    return WB_OK;
}

static wb_status measure_rollout(const plan_model *m, int32_t rank, rank_plan *plan) {
    const char *of = "rollout";
    const wb_model_options model = sizes_rollout(m->o, NULL, NULL, m->placement);
    const wb_engine_options engine = sizes_engine(m->o);
    wb_memory memory;
    WB_TRY(wb_model_measure(&m->config, &model, m->n_ranks, rank, &memory));
    add_measured(plan, of, "tables", &memory);
    WB_TRY(measure_mailbox(m, of, &model, plan));
    WB_TRY(wb_engine_measure(&m->config, &model, &engine, sizes_max_kept(m->o, &m->config), m->n_ranks, rank,
                             &memory));
    add_measured(plan, of, "workspace", &memory);
    WB_TRY(measure_copy(m, &model, rank, plan));
    WB_TRY(measure_rounded(m, rank, plan));
    if (m->o->eplb != EPLB_LIVE) return WB_OK;
    size_t shadow_bytes, load_bytes;
    WB_TRY(live_experts_measure(m->o, &m->config, &model, &shadow_bytes, &load_bytes));
    add(&plan->device, of, "shadow slots", shadow_bytes);
    add(&plan->host, of, "load", load_bytes);
    return WB_OK;
}

/* The routes of a micro-batch as packing.c reserves them: ids, native and used, directions, and the ids of
 * the reference, which is taken to be of the policy's shape. */
static size_t route_bytes(const plan_model *m) {
    const size_t row = wb_config_row_bytes(&m->config), copies = m->o->kl_coef > 0 ? 4 : 3;
    return (size_t)m->o->micro_batch_tokens * (copies * row + 1);
}

static wb_status measure_device(const plan_model *m, int32_t rank, rank_plan *plan) {
    size_t moments, masters;
    WB_TRY(measure_trainer(m, "policy", false, rank, plan));
    WB_TRY(optimizer_measure(&m->config, m->o->dtype, m->n_ranks, rank, &moments, &masters));
    add(&plan->device, "policy", "optimizer moments", moments);
    add(&plan->device, "policy", "master weights", masters);
    add(&plan->device, "policy", "routes", route_bytes(m));
    add(&plan->device, "policy", "indexer lists", sizes_lists(m->o, &m->config));
    if (m->o->kl_coef > 0) WB_TRY(measure_trainer(m, "reference", true, rank, plan));
    WB_TRY(measure_rollout(m, rank, plan));
    if (m->o->device == WB_BACKEND_CUDA) add(&plan->device, "device", "scratch of ops", plan->scratch_bytes);
    return WB_OK;
}

/* ---- the host ---------------------------------------------------------------------------------- */

/* Tokens of a sample, at most. */
static size_t longest_sample(const plan_model *m) {
    const int64_t longest = sizes_longest_sample(m->o, m->config.max_positions);
    const int64_t arithmetic = TASK_MAX_PROMPT + m->o->max_tokens;
    const bool short_ones = strcmp(m->o->task, "arithmetic") == 0 && arithmetic < longest;
    return (size_t)(short_ones ? arithmetic : longest);
}

/* A record: tokens, two log-probabilities and the kept tokens of each new one, routes, and what indexers
 * chose. */
static size_t sample_bytes(const plan_model *m, size_t length) {
    const size_t kept = (size_t)sizes_max_kept(m->o, &m->config), row = wb_config_row_bytes(&m->config);
    const size_t new_token = (2 + (kept > 0 ? 1 + kept : 0)) * sizeof(float);
    return length * (sizeof(uint32_t) + row) + (size_t)m->o->max_tokens * new_token +
           sizes_sample_lists(m->o, &m->config, length);
}

/* Of a sample's rows as training packs them: token, target, temperature, two log-probabilities and the kept
 * tokens. */
static size_t packed_bytes(const plan_model *m, size_t length) {
    const size_t kept = (size_t)sizes_max_kept(m->o, &m->config);
    return length * (5 * sizeof(float) + (kept > 0 ? sizeof(int64_t) : 0)) +
           (size_t)m->o->max_tokens * kept * sizeof(uint32_t);
}

/* Of what indexers look at in one plan of replay, for a sample: a cell for each row; and, where rows may
 * choose natively, what they chose behind the first tokens, in memory that grows by doubling. */
static size_t listed_bytes(const plan_model *m, size_t length, bool chooses) {
    const size_t S = (size_t)wb_config_n_indexers(&m->config);
    if (!m->o->replay_indexer || S == 0) return 0;
    const size_t kept = chooses ? 2 * sizes_listed(&m->config, length) : 0;
    return S * (length * WB_REPLAY_LISTED_BYTES + kept);
}

/* Of a sample in one plan of replay: its routes and what is known of each row in each layer; planned before
 * the passes, two numbers a choice more. */
static size_t replay_bytes(const plan_model *m, size_t length, bool dispatched) {
    const size_t row = wb_config_row_bytes(&m->config), K = (size_t)m->config.router.top_k;
    const size_t choices = row / wb_dtype_size(wb_route_dtype((uint32_t)m->config.router.n_experts));
    const bool chooses =
        dispatched && (m->o->replay == WB_REPLAY_RECORD || m->o->missing == WB_MISSING_NATIVE);
    return length * (row + 2 * choices / K + 14 + (dispatched ? choices * 2 * sizeof(int32_t) : 0)) +
           listed_bytes(m, length, chooses);
}

static void estimate_host(const plan_model *m, int32_t rank, rank_plan *plan) {
    const options *o = m->o;
    const size_t groups = (size_t)((o->prompts + m->n_ranks - 1) / m->n_ranks);
    const size_t n = groups * (size_t)o->samples, length = longest_sample(m);
    size_t replay = n * replay_bytes(m, length, o->replay != WB_REPLAY_OFF);
    if (o->compare_every > 0) replay += n * replay_bytes(m, length, false);
    add(&plan->host, "step", "records", n * sample_bytes(m, length));
    add(&plan->host, "step", "micro-batches", n * packed_bytes(m, length));
    add(&plan->host, "step", "routes",
        (size_t)o->micro_batch_tokens * 2 * (wb_config_row_bytes(&m->config) + sizeof(float)));
    add(&plan->host, "step", "indexer lists", sizes_lists(o, &m->config));
    add(&plan->host, "step", "replay", replay);
    add(&plan->host, "checkpoint", "chunk", CHECKPOINT_CHUNK_BYTES);
    if (rank == 0) add(&plan->host, "checkpoint", "other files", m->companion_bytes);
}

/* ---- all ranks --------------------------------------------------------------------------------- */

/* What tells ranks apart. */
static rank_kind kind_of(const plan_model *m, int32_t rank) {
    const uint32_t E = (uint32_t)wb_config_weighted(&m->config), R = (uint32_t)m->n_ranks, r = (uint32_t)rank;
    const int64_t homes = (int64_t)wb_block_begin(E, R, r + 1) - wb_block_begin(E, R, r);
    const int64_t slots = m->placement ? wb_placement_topology(m->placement)->slots_of_rank[rank] : homes;
    return (rank_kind){slots, homes, rank == 0};
}

/* The plan of an earlier rank of the same kind, or a new one; owner: m, until the next call. */
static wb_status plan_rank(plan_model *m, int32_t rank, const rank_plan **plan_out) {
    const rank_kind kind = kind_of(m, rank);
    for (size_t i = 0; i < m->n_kinds; i++) {
        *plan_out = &m->kinds[i].plan;
        if (memcmp(&m->kinds[i].kind, &kind, sizeof kind) == 0) return WB_OK;
    }
    WB_TRY(WB_GROW(m->kinds, m->n_kinds + 1, &m->max_kinds, "plan of memory"));
    kind_plan *next = &m->kinds[m->n_kinds];
    *next = (kind_plan){.kind = kind};
    WB_TRY(measure_device(m, rank, &next->plan));
    estimate_host(m, rank, &next->plan);
    m->n_kinds++;
    *plan_out = &next->plan;
    return WB_OK;
}

/* The folder of --model, which may be given as its config.json, into dir [PATH_BYTES]. */
static wb_status model_folder(const char *model, char *dir) {
    static const char name[] = "config.json";
    size_t n = strlen(model), ending = sizeof name - 1;
    const bool is_file =
        n >= ending && strcmp(model + n - ending, name) == 0 && (n == ending || model[n - ending - 1] == '/');
    if (is_file) n -= ending;
    if (n >= PATH_BYTES) return wb_fail(WB_INVALID_ARGUMENT, "--model %s: too long", model);
    memcpy(dir, n > 0 ? model : ".", n > 0 ? n : 1);
    dir[n > 0 ? n : 1] = '\0';
    return WB_OK;
}

/* What a run would refuse, as far as it is known: prompts of a file are not read. */
static wb_status check_prompts(const plan_model *m) {
    int64_t max_prompt;
    task *arithmetic;
    WB_TRY(sizes_max_prompt(m->o, m->config.max_positions, &max_prompt));
    if (strcmp(m->o->task, "arithmetic") != 0) return WB_OK;
    WB_TRY(task_open("--task", m->o->task, m->o->seed, m->config.vocab_size, &arithmetic));
    const wb_status status = task_fit_prompts(arithmetic, m->o->long_prompts, max_prompt);
    task_close(arithmetic);
    return status;
}

static wb_status open_plan(const options *o, plan_model *m) {
    char dir[PATH_BYTES];
    wb_companions *companions;
    m->o = o;
    m->n_ranks = (int32_t)o->plan_ranks;
    WB_TRY(model_folder(o->model_dir, dir));
    WB_TRY(wb_config_load(dir, &m->config));
    WB_TRY(lists_check(o, &m->config));
    WB_TRY(expert_places_open(o, &m->config, m->n_ranks, NULL, true, &m->placement));
    WB_TRY(wb_companions_read(dir, &companions));
    m->companion_bytes = wb_companions_bytes(companions);
    wb_companions_close(companions);
    return check_prompts(m);
}

static void print_list(const char *title, const part_list *list, int32_t rank, double sum) {
    printf("\n%s, rank %" PRId32 ", which has most\n", title, rank);
    for (int i = 0; i < list->n; i++) {
        const plan_part *part = &list->parts[i];
        printf("  %-11s %-18s %10.2f GiB %18zu\n", part->of, part->name, (double)part->bytes / GIB,
               part->bytes);
    }
    printf("  %-30s %10.2f GiB %18zu\n", "this rank", (double)list->bytes / GIB, list->bytes);
    printf("  %-30s %10.2f GiB %18.0f\n", "all ranks", sum / GIB, sum);
}

static wb_status compare_memory(const options *o, size_t bytes) {
    if (o->device_memory <= 0) return WB_OK;
    const double needed = (double)bytes / GIB;
    if (needed > o->device_memory)
        return wb_fail(WB_CAPACITY,
                       "a rank's device: expected at most %.2f GiB (--device-memory), found %.2f",
                       o->device_memory, needed);
    printf("\na rank's device has %.2f GiB: it fits, %.2f GiB are left\n", o->device_memory,
           o->device_memory - needed);
    return WB_OK;
}

static wb_status print_plan(plan_model *m) {
    const rank_plan *plan;
    rank_plan device = {0}, host = {0};
    int32_t device_rank = 0, host_rank = 0;
    double device_sum = 0, host_sum = 0;
    for (int32_t rank = 0; rank < m->n_ranks; rank++) {
        WB_TRY(plan_rank(m, rank, &plan));
        device_sum += (double)plan->device.bytes;
        host_sum += (double)plan->host.bytes;
        if (plan->device.bytes > device.device.bytes) device = *plan, device_rank = rank;
        if (plan->host.bytes > host.host.bytes) host = *plan, host_rank = rank;
    }
    printf("memory on %" PRId32 " ranks, samples of at most %zu tokens, micro-batches of %" PRId64 "\n",
           m->n_ranks, longest_sample(m), m->o->micro_batch_tokens);
    print_list("device", &device.device, device_rank, device_sum);
    print_list("host", &host.host, host_rank, host_sum);
    return compare_memory(m->o, device.device.bytes);
}

wb_status memory_plan_print(const options *o) {
    plan_model m = {0};
    wb_status status = open_plan(o, &m);
    if (status == WB_OK) status = print_plan(&m);
    wb_placement_close(m.placement);
    free(m.kinds);
    return status;
}
