/* fuzz_config.c - any bytes as a config.json: refused with the file's name in the message, or a
 * configuration that passes its own check and, written again, reads back as the same. Whose routes it says is
 * read too. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[] = "/tmp/waybill-fuzz-XXXXXX", path[sizeof dir + 16];

static void require(bool holds) {
    if (!holds) abort();
}

static void remove_dir(void) {
    unlink(path);
    rmdir(dir);
}

static void put(const void *data, size_t size) {
    if (path[0] == '\0') {
        require(mkdtemp(dir) != NULL);
        snprintf(path, sizeof path, "%s/config.json", dir);
        atexit(remove_dir);
    }
    FILE *file = fopen(path, "wb");
    require(file && fwrite(data, 1, size, file) == size && fclose(file) == 0);
}

static void require_same(const wb_config *a, const wb_config *b) {
    require(a->family == b->family && a->hidden_size == b->hidden_size && a->n_layers == b->n_layers);
    require(a->n_heads == b->n_heads && a->n_kv_heads == b->n_kv_heads && a->head_dim == b->head_dim);
    require(a->expert_width == b->expert_width && a->vocab_size == b->vocab_size);
    require(a->max_positions == b->max_positions && a->norm_eps == b->norm_eps &&
            a->rope_theta == b->rope_theta);
    require(a->tie_word_embeddings == b->tie_word_embeddings && a->attention_bias == b->attention_bias);
    require(a->qk_norm == b->qk_norm && a->clip_qkv == b->clip_qkv && a->router.type == b->router.type);
    require(a->router.n_experts == b->router.n_experts && a->router.top_k == b->router.top_k);
    require(a->router.n_group == b->router.n_group || (a->router.n_group < 2 && b->router.n_group < 2));
    require(a->router.scale == b->router.scale && a->router.normalize == b->router.normalize);
    require(memcmp(a->moe_layer_mask, b->moe_layer_mask, sizeof a->moe_layer_mask) == 0);
    require(a->shared_width == b->shared_width && a->rotary_dim == b->rotary_dim && a->window == b->window);
    require(memcmp(a->window_layer_mask, b->window_layer_mask, sizeof a->window_layer_mask) == 0);
    require(a->swiglu_limit == b->swiglu_limit && a->rope_scaling.type == b->rope_scaling.type);
    require(memcmp(&a->compressed, &b->compressed, sizeof a->compressed) == 0);
    require(memcmp(&a->hyper, &b->hyper, sizeof a->hyper) == 0);
    require(memcmp(a->hash_layer_mask, b->hash_layer_mask, sizeof a->hash_layer_mask) == 0);
    require(a->rope_scaling.factor == b->rope_scaling.factor &&
            a->rope_scaling.mscale == b->rope_scaling.mscale);
    require(a->n_mtp_layers == b->n_mtp_layers && memcmp(&a->delta, &b->delta, sizeof a->delta) == 0);
}

/* Whose routes: refused alike, or a model that passes its own check. */
static void read_routes(void) {
    static uint32_t layers[WB_ROUTE_LISTS_MAX];
    uint32_t vocab_size;
    wb_route_model model;
    if (wb_routes_of_folder(dir, layers, &model, &vocab_size) != WB_OK)
        require(strstr(wb_error_message(), "config.json") != NULL);
    else
        require(wb_route_model_check(&model) == WB_OK && vocab_size > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    wb_config config, again;
    char *text = NULL;
    put(data, size);
    read_routes();
    if (wb_config_load(dir, &config) != WB_OK) {
        require(strstr(wb_error_message(), "config.json") != NULL);
        return 0;
    }
    require(wb_config_check(&config) == WB_OK);
    require(wb_config_text(&config, wb_family_rules_of(config.family), NULL, WB_BF16, &text) == WB_OK);
    put(text, strlen(text));
    free(text);
    require(wb_config_load(dir, &again) == WB_OK);
    require_same(&config, &again);
    return 0;
}
