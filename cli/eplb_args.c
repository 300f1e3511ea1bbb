/* eplb_args.c - the command line of `waybill eplb`: a table of options with their ranges, and what
 * contradicts what. Refuses: looking at data; whether a shape fits a dump's experts is known only later. */
#include "eplb.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define UNSET UINT64_MAX /* a whole number that was not given; NAN for the others */

typedef enum source_use { ANY, DUMP_ONLY, SYNTHETIC_ONLY } source_use;

/* The command line as typed. */
typedef struct typed {
    const char *dump, *synthetic, *algorithm, *dispatch, *dead;
    uint64_t ranks, slots, nodes, groups, batches, step_records, experts, layers, top_k, tokens, steps, seed;
    uint64_t trials, max_changes, threads;
    double skew, noise, target, horizon;
    double token_us, expert_us, token_bytes, expert_bytes, node_gbps, network_gbps;
} typed;

typedef struct number_rule {
    const char *name;
    uint64_t *value, least, most, fallback; /* fallback UNSET: it is needed */
    source_use use;
} number_rule;

typedef struct decimal_rule {
    const char *name;
    double *value, most;
    bool above_zero;
    source_use use;
} decimal_rule;

enum { N_NUMBERS = 15, N_DECIMALS = 10, N_TEXTS = 8, N_FLAGS = 1 };
enum { N_OPTIONS = N_NUMBERS + N_DECIMALS + N_TEXTS + N_FLAGS };

static void number_rules(typed *t, number_rule *rules) {
    const number_rule all[N_NUMBERS] = {
        {"ranks", &t->ranks, 1, 65536, UNSET, ANY},
        {"slots", &t->slots, 1, 1 << 24, UNSET, ANY},
        {"nodes", &t->nodes, 1, 65536, 1, ANY},
        {"groups", &t->groups, 1, 65536, 1, ANY},
        {"micro-batches", &t->batches, 1, 65536, 4, ANY},
        {"step-records", &t->step_records, 1, UNSET - 1, 0, DUMP_ONLY},
        {"experts", &t->experts, 1, 65536, 256, SYNTHETIC_ONLY},
        {"layers", &t->layers, 1, 65536, 58, SYNTHETIC_ONLY},
        {"top-k", &t->top_k, 1, 65536, 8, SYNTHETIC_ONLY},
        {"tokens", &t->tokens, 1, (uint64_t)1 << 31, 65536, SYNTHETIC_ONLY},
        {"steps", &t->steps, 1, 65536, 2, SYNTHETIC_ONLY},
        {"seed", &t->seed, 0, UNSET - 1, 1, SYNTHETIC_ONLY},
        {"trials", &t->trials, 0, UINT32_MAX, 0, ANY},
        {"max-changes", &t->max_changes, 0, UINT32_MAX, 0, ANY},
        {"threads", &t->threads, 0, 65536, 0, ANY},
    };
    memcpy(rules, all, sizeof all);
}

static void decimal_rules(typed *t, decimal_rule *rules) {
    const decimal_rule all[N_DECIMALS] = {
        {"skew", &t->skew, 1000, false, SYNTHETIC_ONLY},
        {"noise", &t->noise, 1000, false, SYNTHETIC_ONLY},
        {"target", &t->target, 1, true, ANY},
        {"horizon", &t->horizon, 1e18, false, ANY},
        {"token-us", &t->token_us, 1e18, false, ANY},
        {"expert-us", &t->expert_us, 1e18, false, ANY},
        {"token-bytes", &t->token_bytes, 1e18, false, ANY},
        {"expert-bytes", &t->expert_bytes, 1e18, false, ANY},
        {"node-gbps", &t->node_gbps, 1e9, true, ANY},
        {"network-gbps", &t->network_gbps, 1e9, true, ANY},
    };
    memcpy(rules, all, sizeof all);
}

static bool parse(const cli_command *self, int argc, char **argv, typed *t, eplb_settings *s,
                  const number_rule *numbers, const decimal_rule *decimals, int *exit_code) {
    const cli_option texts[N_TEXTS + N_FLAGS] = {
        {.name = "synthetic", .text = &t->synthetic}, {.name = "algorithm", .text = &t->algorithm},
        {.name = "dispatch", .text = &t->dispatch},   {.name = "dead", .text = &t->dead},
        {.name = "init", .text = &s->init_path},      {.name = "save", .text = &s->save_path},
        {.name = "chart", .text = &s->chart_path},    {.name = "json", .flag = &s->json}};
    cli_option options[N_OPTIONS + 1] = {{0}};
    int n = 0;
    for (int i = 0; i < N_NUMBERS; i++) {
        *numbers[i].value = UNSET;
        options[n++] = (cli_option){.name = numbers[i].name, .number = numbers[i].value};
    }
    for (int i = 0; i < N_DECIMALS; i++) {
        *decimals[i].value = NAN;
        options[n++] = (cli_option){.name = decimals[i].name, .decimal = decimals[i].value};
    }
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) options[n++] = texts[i];
    return cli_parse_optional(self, argc, argv, options, &t->dump, exit_code);
}

/* CLI_OK, or what contradicts the source of traffic. */
static int check_use(const cli_command *self, const typed *t, const char *name, source_use use) {
    if (use == DUMP_ONLY && !t->dump)
        return cli_usage_error(self, "--%s is of a DUMP, and --synthetic has none", name);
    if (use == SYNTHETIC_ONLY && t->dump)
        return cli_usage_error(self, "--%s is of --synthetic, and %s says its own", name, t->dump);
    return CLI_OK;
}

/* Ranges of what was given, and the rest filled in. */
static int check_numbers(const cli_command *self, const typed *t, const number_rule *rules) {
    for (int i = 0; i < N_NUMBERS; i++) {
        const number_rule *r = &rules[i];
        if (*r->value == UNSET) {
            if (r->fallback == UNSET) return cli_usage_error(self, "--%s is needed", r->name);
            *r->value = r->fallback;
            continue;
        }
        int code = check_use(self, t, r->name, r->use);
        if (code != CLI_OK) return code;
        if (*r->value < r->least || *r->value > r->most)
            return cli_usage_error(self, "--%s: expected %" PRIu64 "..%" PRIu64 ", found %" PRIu64, r->name,
                                   r->least, r->most, *r->value);
    }
    return CLI_OK;
}

static int check_decimals(const cli_command *self, const typed *t, const decimal_rule *rules) {
    for (int i = 0; i < N_DECIMALS; i++) {
        const decimal_rule *r = &rules[i];
        if (isnan(*r->value)) continue;
        int code = check_use(self, t, r->name, r->use);
        if (code != CLI_OK) return code;
        if (*r->value > r->most || (r->above_zero && *r->value == 0))
            return cli_usage_error(self, "--%s: expected a number %s 0 and at most %g, found %g", r->name,
                                   r->above_zero ? "above" : "of at least", r->most, *r->value);
    }
    return CLI_OK;
}

/* Where tokens come from: a DUMP or --synthetic, one of them. */
static int set_source(const cli_command *self, const typed *t, eplb_settings *s) {
    static const char *const kinds[] = {"zipf", "lognormal", "drift"}; /* in the enum's order */
    if (!t->dump && !t->synthetic) return cli_usage_error(self, "a DUMP or --synthetic is needed");
    if (t->dump && t->synthetic)
        return cli_usage_error(self, "a DUMP or --synthetic, not both: found %s and %s", t->dump,
                               t->synthetic);
    s->dump = t->dump;
    if (t->dump) return CLI_OK;
    int kind = 0;
    while (kind < 3 && strcmp(t->synthetic, kinds[kind]) != 0) kind++;
    if (kind == 3)
        return cli_usage_error(self, "--synthetic: expected zipf, lognormal or drift, found %s",
                               t->synthetic);
    s->synthetic.kind = (wb_synthetic_kind)kind;
    return CLI_OK;
}

static int set_synthetic(const cli_command *self, const typed *t, eplb_settings *s) {
    if (t->top_k > t->experts)
        return cli_usage_error(self, "--top-k: expected at most the %" PRIu64 " of --experts, found %" PRIu64,
                               t->experts, t->top_k);
    if (t->tokens > ((uint64_t)1 << 31) / t->top_k)
        return cli_usage_error(self, "--tokens times --top-k: expected at most 2^31, found %" PRIu64,
                               t->tokens * t->top_k);
    s->synthetic.tokens = t->tokens * t->top_k;
    s->synthetic.seed = t->seed;
    s->synthetic.skew = isnan(t->skew) ? 1 : t->skew;
    s->synthetic.noise = isnan(t->noise) ? 0.2 : t->noise;
    s->n_experts = (uint32_t)t->experts;
    s->n_layers = (uint32_t)t->layers;
    s->top_k = (uint32_t)t->top_k;
    s->n_steps = (uint32_t)t->steps;
    return CLI_OK;
}

/* The next of a comma-separated list, into item_out; false at its end, or when it is empty or too long. */
static bool next_item(const char **list, char *item_out, size_t size) {
    size_t length = strcspn(*list, ",");
    if (length == 0 || length >= size) return false;
    memcpy(item_out, *list, length);
    item_out[length] = '\0';
    *list += length;
    if (**list == ',' && (*list)[1] != '\0') ++*list;
    return true;
}

static int add_solver(const cli_command *self, eplb_settings *s, wb_eplb_algorithm algorithm) {
    for (uint32_t i = 0; i < s->n_solvers; i++)
        if (s->solvers[i] == algorithm)
            return cli_usage_error(self, "--algorithm: %s twice", wb_eplb_algorithm_name(algorithm));
    s->solvers[s->n_solvers++] = algorithm;
    return CLI_OK;
}

static int set_algorithms(const cli_command *self, const typed *t, eplb_settings *s) {
    const char *list = t->algorithm ? t->algorithm : "all";
    char name[32];
    if (strcmp(list, "none") == 0) return CLI_OK;
    if (strcmp(list, "all") == 0) {
        for (int i = 0; i < EPLB_MAX_SOLVERS; i++) s->solvers[i] = (wb_eplb_algorithm)i;
        s->n_solvers = EPLB_MAX_SOLVERS;
        return CLI_OK;
    }
    while (next_item(&list, name, sizeof name)) {
        wb_eplb_algorithm algorithm;
        if (wb_eplb_algorithm_parse(name, &algorithm) != WB_OK)
            return cli_usage_error(self, "--algorithm: %s", wb_error_message());
        int code = add_solver(self, s, algorithm);
        if (code != CLI_OK) return code;
    }
    if (*list != '\0' || s->n_solvers == 0)
        return cli_usage_error(self, "--algorithm: expected names with commas between, found %s",
                               t->algorithm);
    return CLI_OK;
}

static int set_dead(const cli_command *self, const typed *t, eplb_settings *s) {
    if (!t->dead) return CLI_OK;
    s->dead = calloc(t->ranks, 1);
    if (!s->dead) {
        wb_fail(WB_OUT_OF_MEMORY, "--dead: no memory");
        return cli_fail();
    }
    const char *list = t->dead;
    char text[32];
    while (next_item(&list, text, sizeof text)) {
        char *end = NULL;
        unsigned long rank = strtoul(text, &end, 10);
        if (text[0] < '0' || text[0] > '9' || *end != '\0' || rank >= t->ranks)
            return cli_usage_error(self,
                                   "--dead: expected ranks 0..%" PRIu64 " with commas between, found %s",
                                   t->ranks - 1, text);
        s->dead[rank] = 1;
    }
    if (*list != '\0')
        return cli_usage_error(self, "--dead: expected ranks with commas between, found %s", t->dead);
    s->topology.dead = s->dead;
    return CLI_OK;
}

static void set_over(double *value, double given, double unit) {
    if (!isnan(given)) *value = given * unit;
}

static void set_solving(const typed *t, eplb_settings *s) {
    wb_eplb_options *o = &s->options;
    *o = wb_eplb_options_default();
    o->n_groups = (uint32_t)t->groups;
    o->trials = (uint32_t)t->trials;
    o->max_changes = (uint32_t)t->max_changes;
    o->threads = (uint32_t)t->threads;
    set_over(&o->target, t->target, 1);
    set_over(&o->horizon_steps, t->horizon, 1);
    set_over(&o->cost.seconds_per_token, t->token_us, 1e-6);
    set_over(&o->cost.seconds_per_expert, t->expert_us, 1e-6);
    set_over(&o->cost.bytes_per_token, t->token_bytes, 1);
    set_over(&o->cost.expert_bytes, t->expert_bytes, 1);
    set_over(&o->cost.node_bytes_per_second, t->node_gbps, 1e9);
    set_over(&o->cost.network_bytes_per_second, t->network_gbps, 1e9);
}

static int set_all(const cli_command *self, const typed *t, eplb_settings *s) {
    int code = t->dump ? CLI_OK : set_synthetic(self, t, s);
    if (code == CLI_OK) code = set_algorithms(self, t, s);
    if (code == CLI_OK) code = set_dead(self, t, s);
    if (code != CLI_OK) return code;
    if (t->dispatch && wb_dispatch_policy_parse(t->dispatch, &s->dispatch) != WB_OK)
        return cli_usage_error(self, "--dispatch: %s", wb_error_message());
    const char *const paths[][2] = {{"init", s->init_path}, {"save", s->save_path}, {"chart", s->chart_path}};
    for (int i = 0; i < 3; i++)
        if (paths[i][1] && !*paths[i][1])
            return cli_usage_error(self, "--%s: expected a path, found none", paths[i][0]);
    if (s->save_path && s->n_solvers > 1)
        return cli_usage_error(self, "--save: expected one algorithm, found %" PRIu32, s->n_solvers);
    s->topology.n_ranks = (uint32_t)t->ranks;
    s->topology.n_nodes = (uint32_t)t->nodes;
    s->topology.n_slots = (uint32_t)t->slots;
    s->n_batches = (uint32_t)t->batches;
    s->step_records = t->step_records;
    set_solving(t, s);
    return CLI_OK;
}

bool eplb_settings_read(const cli_command *self, int argc, char **argv, eplb_settings *settings_out,
                        int *exit_code) {
    typed t = {0};
    eplb_settings s = {.dispatch = WB_DISPATCH_QUOTA};
    number_rule numbers[N_NUMBERS];
    decimal_rule decimals[N_DECIMALS];
    number_rules(&t, numbers);
    decimal_rules(&t, decimals);
    if (!parse(self, argc, argv, &t, &s, numbers, decimals, exit_code)) return false;
    int code = set_source(self, &t, &s);
    if (code == CLI_OK) code = check_numbers(self, &t, numbers);
    if (code == CLI_OK) code = check_decimals(self, &t, decimals);
    if (code == CLI_OK) code = set_all(self, &t, &s);
    *exit_code = code;
    if (code != CLI_OK) {
        eplb_settings_free(&s);
        return false;
    }
    *settings_out = s;
    return true;
}

void eplb_settings_free(eplb_settings *settings) {
    free(settings->dead);
}
