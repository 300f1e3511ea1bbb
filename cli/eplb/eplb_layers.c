/* eplb_layers.c - which hidden layers are MoE layers, for `waybill eplb --loads`: from a list or from a
 * model's configuration. Refuses: what files of counts make of them (wb_counts_read). */
#include "eplb/eplb.h"
#include "eplb/eplb_arguments.h"
#include "wb_memory.h"
#include "wb_model.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>

enum { MAX_LAYERS = 65536 };

static int bad_list(const cli_command *self, const char *list) {
    return cli_usage_error(
        self,
        "--moe-layers: expected ascending numbers below %d or ranges, with commas between, "
        "found %s",
        MAX_LAYERS, list);
}

static int add_layers(eplb_settings *s, uint32_t first, uint32_t last, size_t *room) {
    const size_t n = s->moe.n_moe + (size_t)(last - first) + 1;
    if (WB_GROW(s->moe_layers, n, room, "--moe-layers") != WB_OK) return cli_fail();
    for (uint32_t l = first; l <= last; l++) s->moe_layers[s->moe.n_moe++] = l;
    return CLI_OK;
}

/* A number from *text on, which is stepped over. */
static bool read_layer(const char **text, uint32_t *layer_out) {
    char *end = NULL;
    if (**text < '0' || **text > '9') return false;
    const unsigned long value = strtoul(*text, &end, 10);
    *text = end;
    *layer_out = (uint32_t)value;
    return value < MAX_LAYERS;
}

/* "3-60", "0,2,4", "0,4-9" */
static int read_list(const cli_command *self, const char *list, eplb_settings *s) {
    size_t room = 0;
    for (const char *at = list;; at++) {
        uint32_t first = 0, last = 0;
        if (!read_layer(&at, &first)) return bad_list(self, list);
        last = first;
        if (*at == '-') {
            at++;
            if (!read_layer(&at, &last)) return bad_list(self, list);
        }
        const bool ascends = s->moe.n_moe == 0 || first > s->moe_layers[s->moe.n_moe - 1];
        if (last < first || !ascends || (*at != ',' && *at != '\0')) return bad_list(self, list);
        const int code = add_layers(s, first, last, &room);
        if (code != CLI_OK || *at == '\0') return code;
    }
}

static int read_model(const char *dir, eplb_settings *s) {
    wb_config config;
    size_t room = 0;
    if (wb_config_load(dir, &config) != WB_OK) return cli_fail();
    s->moe.n_hidden = (uint32_t)config.n_layers;
    s->model_experts = (uint32_t)config.router.n_experts;
    s->top_k = (uint32_t)config.router.top_k;
    s->hidden = (uint32_t)config.hidden_size;
    s->expert_width = (uint32_t)config.expert_width;
    s->sizes_given = true;
    for (int32_t l = 0; l < config.n_layers; l++) {
        if (!wb_config_is_moe(&config, l)) continue;
        const int code = add_layers(s, (uint32_t)l, (uint32_t)l, &room);
        if (code != CLI_OK) return code;
    }
    return CLI_OK;
}

int eplb_read_layers(const cli_command *self, const cli_arguments *arguments, eplb_settings *s) {
    const eplb_arguments *a = arguments->options;
    int code = CLI_OK;
    if (a->moe_layers && a->model)
        return cli_usage_error(self, "--moe-layers or --model, not both: found %s and %s", a->moe_layers,
                               a->model);
    if (a->moe_layers) code = read_list(self, a->moe_layers, s);
    if (a->model) code = read_model(a->model, s);
    s->moe.layers = s->moe_layers;
    return code;
}
