/* config_nested.c - a model of text and images says what its language model is in an object of its
 * config.json, text_config: that one as the config.json of a model of text. Refuses: what images pass
 * through. */
#include "config.h"
#include "wb_check.h"
#include "wb_json.h"

/* What a file may say at its top for the language model; NULL: no memory. */
static json_t *make_part(const json_t *root, const json_t *text, const wb_family_rules *rules) {
    static const char *const keys[] = {"tie_word_embeddings", "quantization_config", "dtype", "torch_dtype",
                                       "transformers_version"};
    json_t *part = json_copy((json_t *)(uintptr_t)text);
    int failed = !part;
    for (size_t i = 0; !failed && i < sizeof keys / sizeof keys[0]; i++) {
        const json_t *value = wb_json_value(root, keys[i]);
        if (value && !wb_json_value(part, keys[i]))
            failed = json_object_set(part, keys[i], (json_t *)(uintptr_t)value);
    }
    if (!failed)
        failed = json_object_set_new(part, "model_type", json_string(wb_family_file_type(rules))) ||
                 json_object_set_new(part, "architectures", json_pack("[s]", rules->architecture));
    if (!failed) return part;
    json_decref(part);
    return NULL;
}

/* Loaders differ in which of the two they take. */
static wb_status check_tied(const json_t *root, const json_t *text) {
    static const char key[] = "tie_word_embeddings";
    const json_t *top = wb_json_value(root, key), *own = wb_json_value(text, key);
    if (!top || !own || json_equal((json_t *)(uintptr_t)top, (json_t *)(uintptr_t)own)) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: expected what text_config says, found another", key);
}

wb_status wb_config_language_part(json_t *root, const wb_family_rules *rules, json_t **part_out) {
    const json_t *text = rules->text_config ? wb_json_value(root, "text_config") : NULL;
    if (!text) {
        *part_out = json_incref(root);
        return WB_OK;
    }
    if (!json_is_object(text)) return wb_json_wrong_type("text_config", text, "an object");
    const json_t *type = wb_json_value(text, "model_type");
    if (type) {
        wb_family family;
        if (!json_is_string(type)) return wb_json_wrong_type("text_config: model_type", type, "a string");
        WB_TRY(wb_family_find(type, &family));
        if (wb_family_rules_of(family) != rules)
            return wb_json_unsupported("text_config: model_type", type, wb_family_file_type(rules));
    }
    WB_TRY(check_tied(root, text));
    *part_out = make_part(root, text, rules);
    return *part_out ? WB_OK : wb_fail(WB_OUT_OF_MEMORY, "config.json: no memory for its text_config");
}
