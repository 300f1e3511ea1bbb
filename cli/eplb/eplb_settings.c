/* eplb_settings.c - from the command line of `waybill eplb` to the settings of a run: lists, units, and what
 * contradicts what. Refuses: looking at data; whether a shape fits a dump's experts is known only later. */
#include "eplb/eplb.h"
#include "eplb/eplb_arguments.h"
#include "wb_memory.h"
#include "wb_threads.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* ---- where tokens come from ------------------------------------------------------------------ */

/* Options of another source than the one that is on the command line. */
static int check_use(const cli_command *self, const cli_arguments *arguments, const eplb_settings *s) {
    for (size_t i = 0; i < self->n_options; i++) {
        const cli_option *o = &self->options[i];
        if (!(arguments->is_set >> i & 1)) continue;
        if (o->belongs_to == DUMP_ONLY && !arguments->dump)
            return cli_usage_error(self, "--%s is of a DUMP, and --%s has none", o->name,
                                   s->loads ? "loads" : "synthetic");
        if (o->belongs_to == SYNTHETIC_ONLY && (arguments->dump || s->loads))
            return cli_usage_error(self, "--%s is of --synthetic, and %s says its own", o->name,
                                   s->loads ? s->loads->items[0] : arguments->dump);
        if (o->belongs_to == LOADS_ONLY && !s->loads)
            return cli_usage_error(self, "--%s is of --loads, which is not given", o->name);
    }
    return CLI_OK;
}

/* A DUMP, --loads or --synthetic, one of them. */
static int set_source(const cli_command *self, const cli_arguments *arguments, const eplb_arguments *a,
                      eplb_settings *s) {
    static const char *const kinds[] = {"zipf", "lognormal", "drift"}; /* in the enum's order */
    const char *const found[] = {arguments->dump, a->loads.n > 0 ? a->loads.items[0] : NULL, a->synthetic};
    const char *first = NULL;
    for (int i = 0; i < 3; i++) {
        if (first && found[i])
            return cli_usage_error(self, "a DUMP, --loads or --synthetic, not both: found %s and %s", first,
                                   found[i]);
        if (found[i]) first = found[i];
    }
    if (!first) return cli_usage_error(self, "a DUMP or --synthetic is needed, or --loads");
    s->dump = arguments->dump;
    if (a->loads.n > 0) s->loads = &a->loads;
    if (s->dump || s->loads) return CLI_OK;
    int kind = 0;
    while (kind < 3 && strcmp(a->synthetic, kinds[kind]) != 0) kind++;
    if (kind == 3)
        return cli_usage_error(self, "--synthetic: expected zipf, lognormal or drift, found %s",
                               a->synthetic);
    s->synthetic.kind = (wb_synthetic_kind)kind;
    return CLI_OK;
}

static int set_synthetic(const cli_command *self, const eplb_arguments *a, eplb_settings *s) {
    if (a->top_k > a->experts)
        return cli_usage_error(self, "--top-k: expected at most the %" PRIu64 " of --experts, found %" PRIu64,
                               a->experts, a->top_k);
    if (a->tokens > ((uint64_t)1 << 31) / a->top_k)
        return cli_usage_error(self, "--tokens times --top-k: expected at most 2^31, found %" PRIu64,
                               a->tokens * a->top_k);
    s->synthetic.tokens = a->tokens * a->top_k;
    s->synthetic.seed = a->seed;
    s->synthetic.skew = a->skew;
    s->synthetic.noise = a->noise;
    s->n_experts = (uint32_t)a->experts;
    s->n_layers = (uint32_t)a->layers;
    s->top_k = (uint32_t)a->top_k;
    s->n_steps = (uint32_t)a->steps;
    return CLI_OK;
}

/* ---- lists ----------------------------------------------------------------------------------- */

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

static int set_algorithms(const cli_command *self, const eplb_arguments *a, eplb_settings *s) {
    const char *list = a->algorithm;
    char name[32];
    s->init_algorithm = WB_EPLB_BALANCED;
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
                               a->algorithm);
    s->init_algorithm = s->solvers[0];
    return CLI_OK;
}

static int set_dead(const cli_command *self, const eplb_arguments *a, eplb_settings *s) {
    if (!a->dead) return CLI_OK;
    if (WB_NEW(s->dead, a->ranks, "--dead") != WB_OK) return cli_fail();
    const char *list = a->dead;
    char text[32];
    while (next_item(&list, text, sizeof text)) {
        char *end = NULL;
        unsigned long rank = strtoul(text, &end, 10);
        if (text[0] < '0' || text[0] > '9' || *end != '\0' || rank >= a->ranks)
            return cli_usage_error(self,
                                   "--dead: expected ranks 0..%" PRIu64 " with commas between, found %s",
                                   a->ranks - 1, text);
        s->dead[rank] = 1;
    }
    if (*list != '\0')
        return cli_usage_error(self, "--dead: expected ranks with commas between, found %s", a->dead);
    s->topology.dead = s->dead;
    return CLI_OK;
}

/* ---- all of it ------------------------------------------------------------------------------- */

/* `value` becomes that of the option at `offset` where it is present: what is left to the library keeps its
 * bits, whatever the unit on the command line. */
static void set_if_present(const cli_command *self, const cli_arguments *arguments, size_t offset,
                           double unit, double *value) {
    const double *found = (const double *)(const void *)((const char *)arguments->options + offset);
    if (cli_is_set(self, arguments, offset)) *value = *found * unit;
}

static void set_solving(const cli_command *self, const cli_arguments *arguments, const eplb_arguments *a,
                        eplb_settings *s) {
    wb_eplb_options *o = &s->options;
    wb_cost_model *cost = &o->cost;
    *o = wb_eplb_options_default();
    *cost = wb_cost_model_of(s->hidden, s->expert_width);
    o->n_groups = (uint32_t)a->groups;
    o->trials = (uint32_t)a->trials;
    o->max_changes = (uint32_t)a->max_changes;
    o->threads = (uint32_t)a->threads;
    o->target = a->target;
    o->horizon_steps = a->horizon;
    set_if_present(self, arguments, offsetof(eplb_arguments, token_us), 1e-6, &cost->seconds_per_token);
    set_if_present(self, arguments, offsetof(eplb_arguments, expert_us), 1e-6, &cost->seconds_per_expert);
    set_if_present(self, arguments, offsetof(eplb_arguments, token_bytes), 1, &cost->bytes_per_token);
    set_if_present(self, arguments, offsetof(eplb_arguments, expert_bytes), 1, &cost->expert_bytes);
    set_if_present(self, arguments, offsetof(eplb_arguments, node_gbps), 1e9, &cost->node_bytes_per_second);
    set_if_present(self, arguments, offsetof(eplb_arguments, network_gbps), 1e9,
                   &cost->network_bytes_per_second);
}

static int set_paths(const cli_command *self, const cli_arguments *arguments, const eplb_arguments *a,
                     eplb_settings *s) {
    if (a->save && s->n_solvers > 1)
        return cli_usage_error(self, "--save: expected one algorithm, found %" PRIu32, s->n_solvers);
    if (!a->save && cli_is_set(self, arguments, offsetof(eplb_arguments, save_as)))
        return cli_usage_error(self, "--save-as is of --save, which is not given");
    if (wb_map_layout_parse(a->save_as, &s->save_as) != WB_OK)
        return cli_usage_error(self, "--save-as: %s", wb_error_message());
    s->init_path = a->init;
    s->save_path = a->save;
    s->chart_path = a->chart;
    return CLI_OK;
}

/* The command line goes before a model's configuration. */
static int set_sizes(const cli_command *self, const cli_arguments *arguments, const eplb_arguments *a,
                     eplb_settings *s) {
    const bool given = cli_is_set(self, arguments, offsetof(eplb_arguments, hidden));
    if (given != cli_is_set(self, arguments, offsetof(eplb_arguments, expert_width)))
        return cli_usage_error(self, "--hidden and --expert-width: expected both or neither");
    const int code = eplb_read_layers(self, arguments, s);
    if (code != CLI_OK || (s->sizes_given && !given)) return code;
    s->hidden = (uint32_t)a->hidden;
    s->expert_width = (uint32_t)a->expert_width;
    s->sizes_given = given;
    return CLI_OK;
}

static int set_all(const cli_command *self, const cli_arguments *arguments, eplb_settings *s) {
    const eplb_arguments *a = arguments->options;
    int code = set_source(self, arguments, a, s);
    if (code == CLI_OK) code = check_use(self, arguments, s);
    if (code == CLI_OK && !s->dump && !s->loads) code = set_synthetic(self, a, s);
    if (code == CLI_OK) code = set_algorithms(self, a, s);
    if (code == CLI_OK) code = set_dead(self, a, s);
    if (code == CLI_OK) code = set_paths(self, arguments, a, s);
    if (code == CLI_OK) code = set_sizes(self, arguments, a, s);
    if (code != CLI_OK) return code;
    if (wb_threads_check(a->threads, "--threads") != WB_OK)
        return cli_usage_error(self, "%s", wb_error_message());
    if (wb_dispatch_policy_parse(a->dispatch, &s->dispatch) != WB_OK)
        return cli_usage_error(self, "--dispatch: %s", wb_error_message());
    s->topology.n_ranks = (uint32_t)a->ranks;
    s->topology.n_nodes = (uint32_t)a->nodes;
    s->topology.n_slots = (uint32_t)a->slots;
    s->n_batches = (uint32_t)a->batches;
    if (s->loads && !cli_is_set(self, arguments, offsetof(eplb_arguments, batches))) s->n_batches = 1;
    s->step_records = a->step_records;
    s->json = a->json;
    set_solving(self, arguments, a, s);
    return CLI_OK;
}

int eplb_settings_read(const cli_command *self, const cli_arguments *arguments, eplb_settings *settings_out) {
    eplb_settings s = {0};
    const int code = set_all(self, arguments, &s);
    if (code == CLI_OK)
        *settings_out = s;
    else
        eplb_settings_free(&s);
    return code;
}

void eplb_settings_free(eplb_settings *settings) {
    free(settings->dead);
    free(settings->moe_layers);
}
