/* config_mla.c - the sizes of latent attention in a config.json, read, checked and written. Refuses: heads of
 * other attention (config_read.c). */
#include "config.h"
#include "wb_check.h"
#include "wb_json.h"

/* Such that no product of widths and heads leaves an int32. */
static wb_status check_sizes(const wb_config *c) {
    const wb_mla_sizes *m = &c->mla;
    WB_TRY(wb_config_in_range("num_attention_heads", c->n_heads, 1, 65536));
    const int32_t most = INT32_MAX / c->n_heads / 4;
    WB_TRY(wb_config_in_range("kv_lora_rank", m->kv_rank, 1, most));
    WB_TRY(wb_config_in_range("q_lora_rank", m->q_rank, 0, INT32_MAX / 4));
    WB_TRY(wb_config_in_range("qk_nope_head_dim", m->nope_dim, 1, most));
    WB_TRY(wb_config_in_range("qk_rope_head_dim", m->rope_dim, 2, most));
    WB_TRY(wb_config_in_range("v_head_dim", m->value_dim, 1, most));
    if (m->rope_dim % 2 == 0) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "qk_rope_head_dim: expected an even number, found %d", m->rope_dim);
}

/* q_lora_rank is null where q has one matrix; where the key is absent it is the reference's 1536. */
static wb_status read_q_rank(const json_t *root, int32_t *q_rank_out) {
    const int32_t absent = json_object_get(root, "q_lora_rank") ? 0 : 1536;
    return wb_json_int(root, "q_lora_rank", absent, q_rank_out);
}

wb_status wb_config_read_mla(const json_t *root, wb_config *c) {
    wb_mla_sizes *m = &c->mla;
    WB_TRY(wb_json_int(root, "num_attention_heads", WB_JSON_REQUIRED, &c->n_heads));
    WB_TRY(read_q_rank(root, &m->q_rank));
    WB_TRY(wb_json_int(root, "kv_lora_rank", 512, &m->kv_rank));
    WB_TRY(wb_json_int(root, "qk_nope_head_dim", 128, &m->nope_dim));
    WB_TRY(wb_json_int(root, "qk_rope_head_dim", 64, &m->rope_dim));
    WB_TRY(wb_json_int(root, "v_head_dim", 128, &m->value_dim));
    m->interleaved = true;
    if (wb_json_value(root, "rope_interleave"))
        WB_TRY(wb_json_bool(root, "rope_interleave", &m->interleaved));
    WB_TRY(check_sizes(c));
    c->n_kv_heads = c->n_heads;
    c->head_dim = m->nope_dim + m->rope_dim;
    return WB_OK;
}

wb_status wb_config_check_mla(const wb_config *c, const wb_family_rules *rules) {
    const wb_mla_sizes *m = &c->mla;
    if (!rules->latent_attention) {
        if (m->kv_rank == 0) return WB_OK;
        return wb_fail(WB_INVALID_ARGUMENT, "mla: expected none for %s, found a latent of %d",
                       rules->model_type, m->kv_rank);
    }
    WB_TRY(check_sizes(c));
    WB_TRY(wb_config_in_range("head_dim", c->head_dim, m->nope_dim + m->rope_dim, m->nope_dim + m->rope_dim));
    return wb_config_in_range("num_key_value_heads", c->n_kv_heads, c->n_heads, c->n_heads);
}

int wb_config_write_mla(const wb_config *c, json_t *root) {
    const wb_mla_sizes *m = &c->mla;
    json_t *q_rank = m->q_rank > 0 ? json_integer(m->q_rank) : json_null();
    return json_object_set_new(root, "q_lora_rank", q_rank) ||
           json_object_set_new(root, "kv_lora_rank", json_integer(m->kv_rank)) ||
           json_object_set_new(root, "qk_nope_head_dim", json_integer(m->nope_dim)) ||
           json_object_set_new(root, "qk_rope_head_dim", json_integer(m->rope_dim)) ||
           json_object_set_new(root, "v_head_dim", json_integer(m->value_dim)) ||
           json_object_set_new(root, "rope_interleave", json_boolean(m->interleaved));
}
