/* bench_engine.c - the rollout engine under a load as GRPO's on the CPU: groups of 16 samples of one prompt
 * of 512 tokens, answers of skewed length, with the prefix cache and drafts off and on, routes off and on,
 * on one rank and on two, which are threads; and all groups on one of two ranks, at most 8 requests of a
 * rank running, with requests lent or not.
 *
 * bench_engine [GROUPS [RANKS [ANSWER [CASE [LAYERS]]]]]       2 groups; 1 and 2 ranks (0); answers of 16 to
 * 128 tokens; all cases (0), or of those of so many ranks the one that is so many lines down; 8 layers. One
 * case and one layer are for a profiler.
 *
 * The model is bench_model's. Prints new tokens a second, by the wall clock and by the CPU time of all
 * threads, prompt tokens fed and taken over, drafts fed and accepted, and the share of steps in which a
 * rank had nothing to feed. Refuses: peers (compare_model.sh). */
#include "bench_tools.h"
#include "support/usage.h"
#include "wb_device.h"
#include "wb_rollout.h"

#include <inttypes.h>
#include <pthread.h>

enum { SAMPLES = 16, PROMPT = 512, VOCABULARY = 8192, MAX_RANKS = 2 };

typedef struct load {
    int n_groups, n_ranks;
    uint32_t max_answer;
    bool cache, routes;
    int32_t max_drafts;
    bool one_sided, lends; /* all groups on rank 0, where 8 requests run at a time */
} load;

typedef struct rank {
    const load *load;
    wb_comm *comm;
    pthread_t thread;
    wb_engine_stats stats;
    uint64_t idle_steps;
    double seconds, cpu_seconds; /* of generation alone; of all threads */
} rank;

static wb_config config = {
    .family = WB_FAMILY_QWEN3_MOE,
    .hidden_size = 512,
    .n_layers = 8,
    .n_heads = 8,
    .n_kv_heads = 2,
    .head_dim = 64,
    .expert_width = 192,
    .dense_width = 2048,
    .vocab_size = VOCABULARY,
    .max_positions = 4096,
    .norm_eps = 1e-6F,
    .rope_theta = 1000000,
    .qk_norm = WB_QK_NORM_PER_HEAD,
    .router = {.type = WB_ROUTER_SOFTMAX_NORM, .n_experts = 32, .top_k = 4, .normalize = true, .scale = 1},
    .moe_layer_mask = {0xff}};

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Few answers are long. A third of the prompt says again what it has said, for drafts to look up. */
static void submit(wb_engine *engine, const load *l, int group, int sample) {
    uint32_t prompt[PROMPT];
    uint64_t state = (uint64_t)group + 1, of_sample = wb_mix64((uint64_t)(group * SAMPLES + sample + 1));
    for (uint32_t t = 0; t < PROMPT; t++)
        prompt[t] = t % 3 == 2 && t > 60 ? prompt[t - 60] : (uint32_t)(wb_random(&state) % VOCABULARY);
    char rid[32];
    snprintf(rid, sizeof rid, "%d-%d", group, sample);
    wb_request request = wb_request_default();
    request.rid = rid;
    request.group = (uint64_t)group;
    request.sample = (uint32_t)sample;
    request.n_tokens = PROMPT;
    request.tokens = prompt;
    const double u = uniform(&of_sample);
    request.max_tokens = l->max_answer / 8 + (uint32_t)(u * u * u * (l->max_answer - l->max_answer / 8.0));
    request.seed = wb_random(&of_sample);
    request.temperature = sample % 2 == 0 ? 1.0F : 0.0F;
    request.return_routes = l->routes;
    must(wb_engine_submit(engine, &request));
}

static void generate(rank *r, wb_engine *engine) {
    const load *l = r->load;
    uint64_t fed = 0;
    const int n_asked = l->one_sided ? 1 : l->n_ranks;
    for (int g = wb_comm_rank(r->comm); g < l->n_groups && wb_comm_rank(r->comm) < n_asked; g += n_asked)
        for (int i = 0; i < SAMPLES; i++) submit(engine, l, g, i);
    must(wb_comm_barrier(r->comm));
    const double begin = now(), cpu_begin = cpu_seconds();
    for (bool busy = true; busy;) {
        must(wb_engine_step(engine, &busy));
        r->stats = wb_engine_get_stats(engine);
        const uint64_t now_fed = r->stats.prefill_tokens + r->stats.decode_tokens;
        r->idle_steps += now_fed == fed;
        fed = now_fed;
        for (wb_completion *done; (done = wb_engine_poll(engine));) wb_completion_free(done);
    }
    r->seconds = now() - begin;
    r->cpu_seconds = cpu_seconds() - cpu_begin;
}

static void *run_rank(void *arg) {
    rank *r = arg;
    wb_device *device = NULL;
    wb_model *model = NULL;
    wb_engine *engine = NULL;
    must(wb_device_open_cpu(r->load->n_ranks == 1 ? 2 : 1, &device));
    wb_model_options model_options = wb_model_options_default();
    model_options.device = device;
    model_options.comm = r->comm;
    must(wb_model_create(&config, 1, 0.02F, &model_options, &model));
    wb_engine_options options = wb_engine_options_default();
    options.n_blocks = 4096;
    options.prefix_cache = r->load->cache;
    options.max_drafts = r->load->max_drafts;
    options.lend_requests = r->load->lends;
    if (r->load->one_sided) options.max_running = 8;
    must(wb_engine_open(model, &options, &engine));
    generate(r, engine);
    wb_engine_close(engine);
    wb_model_close(model);
    wb_device_close(device);
    return NULL;
}

static void run(const load *l) {
    wb_comm *comms[MAX_RANKS];
    rank ranks[MAX_RANKS] = {{0}};
    wb_engine_stats sum = {0};
    uint64_t idle = 0;
    must(wb_comm_open_threads(l->n_ranks, comms));
    for (int i = 0; i < l->n_ranks; i++) {
        ranks[i] = (rank){.load = l, .comm = comms[i]};
        if (pthread_create(&ranks[i].thread, NULL, run_rank, &ranks[i]) != 0) abort();
    }
    for (int i = 0; i < l->n_ranks; i++) pthread_join(ranks[i].thread, NULL);
    for (int i = 0; i < l->n_ranks; i++) {
        const wb_engine_stats *s = &ranks[i].stats;
        sum.prefill_tokens += s->prefill_tokens, sum.taken_over_tokens += s->taken_over_tokens;
        sum.decode_tokens += s->decode_tokens, sum.finished += s->finished;
        sum.drafts += s->drafts, sum.accepted_drafts += s->accepted_drafts;
        idle += ranks[i].idle_steps;
        wb_comm_close(comms[i]);
    }
    const double new_tokens = (double)(sum.decode_tokens + sum.finished);
    const double rank_steps = (double)ranks[0].stats.steps * l->n_ranks;
    printf("%d ranks%s, cache %-3s drafts %d, routes %-3s %7.1f tok/s, of CPU time %7.1f; prefill %6" PRIu64
           ", taken over %6" PRIu64 "; drafts %5" PRIu64 ", accepted %5" PRIu64 "; %5" PRIu64
           " steps, idle %4.1f %%\n",
           l->n_ranks,
           l->lends       ? ", lent"
           : l->one_sided ? ", one asked"
                          : "",
           l->cache ? "on," : "off,", l->max_drafts,
           l->routes ? "on:" : "off:", new_tokens / ranks[0].seconds, new_tokens / ranks[0].cpu_seconds,
           sum.prefill_tokens, sum.taken_over_tokens, sum.drafts, sum.accepted_drafts, ranks[0].stats.steps,
           100 * (double)idle / rank_steps);
    fflush(stdout);
}

int main(int argc, char **argv) {
    int code;
    long groups = 2, only = 0, answer = 128, only_case = 0, layers = config.n_layers;
    if (usage_ends(
            argc, argv, 0, 5,
            "usage: bench_engine [GROUPS [RANKS [ANSWER [CASE [LAYERS]]]]]\n"
            "groups of 16 samples (2), on 1 or 2 ranks (0: both), the longest answer in tokens (128),\n"
            "the case by its line (0: all of them), layers of the model (8)\n",
            &code))
        return code;
    if (!usage_number("GROUPS", argc > 1 ? argv[1] : NULL, 1, 4096, &groups) ||
        !usage_number("RANKS", argc > 2 ? argv[2] : NULL, 0, MAX_RANKS, &only) ||
        !usage_number("ANSWER", argc > 3 ? argv[3] : NULL, 8, config.max_positions - PROMPT, &answer) ||
        !usage_number("CASE", argc > 4 ? argv[4] : NULL, 0, 7, &only_case) ||
        !usage_number("LAYERS", argc > 5 ? argv[5] : NULL, 1, 8, &layers))
        return 2;
    config.n_layers = (int32_t)layers;
    config.moe_layer_mask[0] = (UINT64_C(1) << layers) - 1;
    load l = {.n_groups = (int)groups, .max_answer = (uint32_t)answer, .routes = true};
    printf("qwen3_moe, %ld layers, f32; %d groups of %d, prompts of %d, answers of %u to %u\n", layers,
           l.n_groups, SAMPLES, PROMPT, l.max_answer / 8, l.max_answer);
    for (l.n_ranks = 1; l.n_ranks <= MAX_RANKS; l.n_ranks++)
        for (int i = 0; i < (l.n_ranks == 1 ? 5 : 7) && (only == 0 || only == l.n_ranks); i++) {
            if (only_case > 0 && only_case != i + 1) continue;
            l.cache = i != 0;
            l.max_drafts = i == 2 || i == 3 ? 4 : 0;
            l.routes = i != 3 && i != 4;
            l.one_sided = i >= 5;
            l.lends = i == 6;
            run(&l);
        }
    return 0;
}
