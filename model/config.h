/* config.h - a configuration: its file, and what reading, checking and the families share. */
#ifndef WB_CONFIG_FILE_H
#define WB_CONFIG_FILE_H

#include "families/family.h"

#define WB_MAX_LAYERS 1024
enum { WB_LAYER_MASK_WORDS = WB_MAX_LAYERS / 64 };

/* ---- the file (config_read.c, config_write.c) ------------------------------------------------ */

/* wb_config_load that also hands out the file's text, freed with free(). */
wb_status wb_config_read(const char *dir, wb_config *config_out, char **text_out);

/* wb_config_load whatever the weights are stored as, which changes no route. */
wb_status wb_config_load_unquantized(const char *dir, wb_config *config_out);

/* The family that model_type names. */
wb_status wb_config_family(const json_t *root, wb_family *family_out);

/* What a config.json says of the language model, as a config.json of that one alone (config_nested.c): the
 * object itself, or a copy of its text_config. Freed with json_decref. */
wb_status wb_config_language_part(json_t *root, const wb_family_rules *rules, json_t **part_out);

/* Reads the object of a config.json by the rules of its family into *config, whose `family` is set, and
 * checks it. */
wb_status wb_config_parse(const json_t *root, const wb_family_rules *rules, wb_config *config);

/* Text of a config.json: `source` with its dtype adjusted, for weights that are stored as they are, or made
 * from `config` by the rules of its family where source is NULL. Freed with free(). */
wb_status wb_config_text(const wb_config *config, const wb_family_rules *rules, const char *source,
                         wb_dtype dtype, char **text_out);

/* ---- parts of it, which families share ------------------------------------------------------- */

/* Which layers are MoE (config_layers.c); first_dense: first_k_dense_replace where it is absent. */
wb_status wb_config_read_moe_layers(const json_t *root, wb_moe_rule rule, int32_t first_dense,
                                    int32_t n_layers, uint64_t mask_out[WB_LAYER_MASK_WORDS]);
wb_status wb_config_check_moe_layers(const wb_config *config, const wb_family_rules *rules);

/* The rotary embedding (config_rope.c). Reads when head_dim and max_positions are set. */
wb_status wb_config_read_rope(const json_t *root, const wb_family_rules *rules, wb_config *config);
wb_status wb_config_check_rope(const wb_config *config, const wb_family_rules *rules);

/* Which layers see a window (config_layers.c). */
wb_status wb_config_read_windows(const json_t *root, const wb_family_rules *rules, wb_config *config);
wb_status wb_config_check_windows(const wb_config *config, const wb_family_rules *rules);
int32_t wb_config_window(const wb_config *config, int32_t layer); /* 0: none */

/* shared_width, of n_shared_experts experts of expert_width each (config_layers.c); `absent`: what is
 * meant where the key is not there. */
wb_status wb_config_read_shared(const json_t *root, int32_t absent, wb_config *config);

/* Latent attention (config_mla.c); reading sets all heads. */
wb_status wb_config_read_mla(const json_t *root, wb_config *config);
wb_status wb_config_check_mla(const wb_config *config, const wb_family_rules *rules);

/* Gated delta net (config_delta.c). Reads when n_layers is set. */
enum { WB_DELTA_INTERVAL = 4 }; /* every such layer has attention, where a file does not say which */
wb_status wb_config_read_delta(const json_t *root, wb_config *config);
wb_status wb_config_check_delta(const wb_config *config, const wb_family_rules *rules);
int wb_config_write_delta(const wb_config *config, json_t *root); /* as the next ones */
bool wb_config_has_delta(const wb_config *config, int32_t layer); /* in place of attention */
/* Gives it to all layers but each interval-th one. */
void wb_config_set_delta_layers(int32_t interval, wb_config *config);

/* Widths of a token: queries and keys; values; all of them, which are the channels of the convolution. */
static inline int64_t wb_delta_key_width(const wb_delta_sizes *d) {
    return (int64_t)d->n_key_heads * d->key_dim;
}
static inline int64_t wb_delta_value_width(const wb_delta_sizes *d) {
    return (int64_t)d->n_value_heads * d->value_dim;
}
static inline int64_t wb_delta_channels(const wb_delta_sizes *d) {
    return 2 * wb_delta_key_width(d) + wb_delta_value_width(d);
}

/* Attention over compressed entries, and hash-routed layers (config_compressed.c). */
wb_status wb_config_read_compressed(const json_t *root, wb_config *config);
wb_status wb_config_check_compressed(const wb_config *config, const wb_family_rules *rules);
void wb_config_usual_compressed(wb_config *config); /* rates where they are 0, and kinds of layers */
int32_t wb_config_compress_rate(const wb_config *config, int32_t layer); /* positions to an entry; 0: none */
bool wb_config_is_sparse(const wb_config *config, int32_t layer);        /* an indexer chooses entries */
bool wb_config_is_hash(const wb_config *config, int32_t layer);
/* What a route model says of indexers: each layer that has one uses its own. layers: [n_layers], which
 * *routes points into (routes_of_model.c). */
void wb_config_describe_indexers(const wb_config *config, uint32_t *layers, wb_route_model *routes);
/* As wb_config_read_rope, of layers without entries and of those with some. */
wb_status wb_config_read_two_ropes(const json_t *root, const wb_family_rules *rules, wb_config *config);

/* They add their keys to a new config.json; non-zero: no memory. */
int wb_config_write_mla(const wb_config *config, json_t *root);
int wb_config_write_compressed(const wb_config *config, json_t *root);
int wb_config_write_shared(const wb_config *config, json_t *root);
int wb_config_write_windows(const wb_config *config, const wb_family_rules *rules, json_t *root);
int wb_config_write_moe_layers(const wb_config *config, const wb_family_rules *rules, json_t *root);
int wb_config_write_rope(const wb_config *config, const wb_family_rules *rules, json_t *root);

/* ---- checks (config_check.c, config.c) ------------------------------------------------------- */

/* wb_config_check by the rules of the family. */
wb_status wb_config_check_by(const wb_config *config, const wb_family_rules *rules);

int32_t wb_config_n_moe(const wb_config *config); /* MoE layers */

/* INVALID_ARGUMENT with the key unless the value is in min..max, or finite and above 0. */
wb_status wb_config_in_range(const char *key, int64_t found, int64_t min, int64_t max);
wb_status wb_config_positive(const char *key, double found);

/* A float above 0 that neither vanishes nor overflows on the way from the file's double. */
wb_status wb_config_float(const json_t *object, const char *key, double fallback, float *value_out);

#endif
