/* config.h - a configuration: its file, and what reading, checking and the families share. */
#ifndef WB_CONFIG_H
#define WB_CONFIG_H

#include "families/family.h"
#include "wb_model.h"

#define WB_MAX_LAYERS 1024

/* ---- the file (config_read.c, config_write.c) ------------------------------------------------ */

/* wb_config_load that also hands out the file's text, freed with free(). */
wb_status wb_config_read(const char *dir, wb_config *config_out, char **text_out);

/* Reads the object of a config.json by the rules of its family into *config, whose `family` is set, and
 * checks it. */
wb_status wb_config_parse(const json_t *root, const wb_family_rules *rules, wb_config *config);

/* Text of a config.json: `source` with its dtype adjusted, or made from `config` by the rules of its family
 * where source is NULL. Freed with free(). */
wb_status wb_config_text(const wb_config *config, const wb_family_rules *rules, const char *source,
                         wb_dtype dtype, char **text_out);

/* ---- checks (config_check.c, config.c) ------------------------------------------------------- */

/* wb_config_check by the rules of the family. */
wb_status wb_config_check_by(const wb_config *config, const wb_family_rules *rules);

int32_t wb_config_n_moe(const wb_config *config); /* MoE layers */

/* By which latent attention multiplies scores: 1 / sqrt(head_dim), and where YaRN scales the rotary embedding
 * the square of its magnitude. */
float wb_config_softmax_scale(const wb_config *config);

/* INVALID_ARGUMENT with the key unless the value is in min..max, or finite and above 0. */
wb_status wb_config_in_range(const char *key, int64_t found, int64_t min, int64_t max);
wb_status wb_config_positive(const char *key, double found);

/* A float above 0 that neither vanishes nor overflows on the way from the file's double. */
wb_status wb_config_float(const json_t *object, const char *key, double fallback, float *value_out);

#endif
