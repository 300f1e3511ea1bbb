/* config_rope.c - the rotary embedding of a config.json, read and written: base, turned dimensions,
 * scaling. Keys lie at the top, in rope_scaling or in rope_parameters; where places differ in a value,
 * loaders differ in which of them they take, so that it is refused, but where one of them is there unasked.
 * Refuses: a layout by layer type, and any key that changes the function and is not known here. */
#include "config.h"
#include "wb_check.h"
#include "wb_json.h"

#include <math.h>
#include <string.h>

/* ---- keys ------------------------------------------------------------------------------------ */

static const char *const rope_types[] = {
    [WB_ROPE_PLAIN] = "default", [WB_ROPE_LINEAR] = "linear", [WB_ROPE_YARN] = "yarn"};
enum { N_ROPE_TYPES = sizeof rope_types / sizeof rope_types[0] };

static bool is_one_of(const char *key, const char *const *list) {
    for (; *list; list++)
        if (strcmp(key, *list) == 0) return true;
    return false;
}

/* A layout by layer type ({"full_attention": {...}}) or a key that this kind of rope does not have would
 * change the function, and must not be passed over. */
static wb_status check_keys(const json_t *object, const char *owner, wb_rope_type type,
                            const char *const *ignored) {
    static const char *const plain[] = {"rope_type", "type", "rope_theta", "partial_rotary_factor", NULL},
                             *const linear[] = {"factor", NULL},
                             *const yarn[] = {"factor",
                                              "original_max_position_embeddings",
                                              "beta_fast",
                                              "beta_slow",
                                              "attention_factor",
                                              "mscale",
                                              "mscale_all_dim",
                                              "truncate",
                                              NULL};
    static const char *const *const scaled[] = {[WB_ROPE_LINEAR] = linear, [WB_ROPE_YARN] = yarn};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value) {
        if (json_is_null(value) || is_one_of(key, plain)) continue;
        if (type != WB_ROPE_PLAIN && is_one_of(key, scaled[type])) continue;
        if (ignored && is_one_of(key, ignored)) continue;
        return wb_fail(WB_UNSUPPORTED,
                       "%s: supported are rope_type, rope_theta and partial_rotary_factor, and the keys of "
                       "linear and yarn with these types, found %s",
                       owner, key);
    }
    return WB_OK;
}

/* Whether "rope" is one of the words of a key, which "_" parts. */
static bool is_about_rope(const char *key) {
    for (const char *at = strstr(key, "rope"); at; at = strstr(at + 4, "rope"))
        if ((at == key || at[-1] == '_') && (at[4] == '\0' || at[4] == '_')) return true;
    return false;
}

/* Another key about rope at the top (rope_local_base_freq, no_rope_layers) is of another layout. */
static wb_status check_top_keys(const json_t *root, const wb_family_rules *rules) {
    static const char *const known[] = {"rope_theta", "rope_scaling", "rope_parameters", NULL};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)root, key, value) {
        if (json_is_null(value) || json_is_false(value) || !is_about_rope(key)) continue;
        if (is_one_of(key, known) || (rules->rope_keys && is_one_of(key, rules->rope_keys))) continue;
        return wb_json_unsupported(key, value, "none");
    }
    return WB_OK;
}

/* ---- one number in several places ------------------------------------------------------------ */

/* The places that may hold rope's parameters; NULL: the top. */
static const char *const rope_places[] = {NULL, "rope_scaling", "rope_parameters"};
enum { N_ROPE_PLACES = sizeof rope_places / sizeof rope_places[0] };

static const json_t *rope_place(const json_t *root, size_t i) {
    return rope_places[i] ? wb_json_value(root, rope_places[i]) : root;
}

static wb_status read_number(const json_t *root, const char *key, double absent, double *value_out) {
    size_t first = N_ROPE_PLACES;
    *value_out = absent;
    for (size_t i = 0; i < N_ROPE_PLACES; i++) {
        const json_t *place = rope_place(root, i);
        double value = 0;
        if (!wb_json_value(place, key)) continue;
        const wb_status status = wb_json_number(place, key, 0, &value);
        if (status != WB_OK) return rope_places[i] ? wb_fail_context(status, "%s", rope_places[i]) : status;
        if (first < N_ROPE_PLACES && value != *value_out)
            return wb_fail(WB_INVALID_ARGUMENT, "%s: expected one number, found %.9g %s%s and %.9g in %s",
                           key, *value_out, rope_places[first] ? "in " : "at the top",
                           rope_places[first] ? rope_places[first] : "", value, rope_places[i]);
        *value_out = value;
        first = i;
    }
    return WB_OK;
}

/* transformers writes the family's usual factor at the top, asked or not, and reads that of rope_parameters
 * where there is one: the usual one at the top says nothing then. */
static wb_status read_rotary_factor(const json_t *root, double usual, double *factor_out) {
    static const char key[] = "partial_rotary_factor";
    const json_t *parameters = rope_place(root, N_ROPE_PLACES - 1);
    double top = 0;
    if (wb_json_value(root, key)) WB_TRY(wb_json_number(root, key, 0, &top));
    if (top != usual || !wb_json_value(parameters, key)) return read_number(root, key, usual, factor_out);
    const wb_status status = wb_json_number(parameters, key, 0, factor_out);
    return status == WB_OK ? WB_OK : wb_fail_context(status, "%s", rope_places[N_ROPE_PLACES - 1]);
}

/* ---- scaling --------------------------------------------------------------------------------- */

static wb_status read_type(const json_t *object, wb_rope_type *type_out) {
    static const char *const keys[] = {"rope_type", "type"};
    *type_out = WB_ROPE_PLAIN;
    for (size_t i = 0; i < 2; i++) {
        const json_t *value = wb_json_value(object, keys[i]);
        size_t type = 0;
        if (!value) continue;
        if (!json_is_string(value)) return wb_json_wrong_type(keys[i], value, "a string");
        while (type < N_ROPE_TYPES && strcmp(json_string_value(value), rope_types[type]) != 0) type++;
        if (type == N_ROPE_TYPES)
            return wb_json_unsupported(keys[i], value, "\"default\", \"linear\" or \"yarn\"");
        *type_out = (wb_rope_type)type;
    }
    return WB_OK;
}

/* A number above 0 where it is there; 0 counts as absent, as the reference has it. */
static wb_status read_positive(const json_t *object, const char *key, double absent, double *value_out) {
    WB_TRY(wb_json_number(object, key, absent, value_out));
    if (*value_out == 0) *value_out = absent;
    return *value_out == 0 ? WB_OK : wb_config_positive(key, *value_out);
}

/* The scaling of YaRN's keys; positions: of the model, which is what the original ones are where they are not
 * said, and what the factor brings them to where that is not. */
static wb_status read_yarn(const json_t *object, int32_t positions, wb_rope_scaling *s) {
    WB_TRY(wb_json_int(object, "original_max_position_embeddings", positions, &s->original_positions));
    WB_TRY(wb_config_in_range("original_max_position_embeddings", s->original_positions, 1, INT32_MAX));
    WB_TRY(read_positive(object, "factor", (double)positions / s->original_positions, &s->factor));
    WB_TRY(read_positive(object, "beta_fast", 32.0, &s->beta_fast));
    WB_TRY(read_positive(object, "beta_slow", 1.0, &s->beta_slow));
    WB_TRY(read_positive(object, "attention_factor", 0, &s->attention_factor));
    WB_TRY(read_positive(object, "mscale", 0, &s->mscale));
    WB_TRY(read_positive(object, "mscale_all_dim", 0, &s->mscale_all_dim));
    s->truncate = true;
    return wb_json_value(object, "truncate") ? wb_json_bool(object, "truncate", &s->truncate) : WB_OK;
}

static wb_status read_scaling(const json_t *object, const char *owner, const wb_family_rules *rules,
                              int32_t positions, wb_rope_scaling *scaling_out) {
    wb_rope_scaling s = {.type = WB_ROPE_PLAIN};
    WB_TRY(read_type(object, &s.type));
    WB_TRY(check_keys(object, owner, s.type, rules->rope_ignored));
    if (s.type == WB_ROPE_LINEAR) {
        WB_TRY(wb_json_number(object, "factor", 0, &s.factor));
        WB_TRY(wb_config_positive("factor", s.factor));
    }
    if (s.type == WB_ROPE_YARN) WB_TRY(read_yarn(object, positions, &s));
    *scaling_out = s;
    return WB_OK;
}

static bool same_scaling(const wb_rope_scaling *a, const wb_rope_scaling *b) {
    return a->type == b->type && a->truncate == b->truncate && a->factor == b->factor &&
           a->beta_fast == b->beta_fast && a->beta_slow == b->beta_slow &&
           a->original_positions == b->original_positions && a->attention_factor == b->attention_factor &&
           a->mscale == b->mscale && a->mscale_all_dim == b->mscale_all_dim;
}

/* Of both objects; of neither the family's. */
static wb_status read_scalings(const json_t *root, const wb_family_rules *rules, wb_config *c) {
    const char *first = NULL;
    c->rope_scaling = rules->rope_scaling;
    for (size_t i = 1; i < N_ROPE_PLACES; i++) {
        const char *owner = rope_places[i];
        const json_t *object = wb_json_value(root, owner);
        wb_rope_scaling scaling = {.type = WB_ROPE_PLAIN};
        if (!object) continue;
        if (!json_is_object(object)) return wb_json_wrong_type(owner, object, "an object");
        const wb_status status = read_scaling(object, owner, rules, c->max_positions, &scaling);
        if (status != WB_OK) return wb_fail_context(status, "%s", owner);
        if (first && !same_scaling(&scaling, &c->rope_scaling))
            return wb_fail(WB_INVALID_ARGUMENT, "%s: expected the rope of %s, found another", owner, first);
        c->rope_scaling = scaling;
        first = owner;
    }
    return WB_OK;
}

/* ---- all of it ------------------------------------------------------------------------------- */

wb_status wb_config_read_rope(const json_t *root, const wb_family_rules *rules, wb_config *c) {
    const double usual = rules->rotary_factor > 0 ? rules->rotary_factor : 1.0;
    double factor;
    WB_TRY(check_top_keys(root, rules));
    WB_TRY(read_scalings(root, rules, c));
    WB_TRY(read_number(root, "rope_theta", rules->rope_theta, &c->rope_theta));
    WB_TRY(read_rotary_factor(root, usual, &factor));
    if (rules->rotary_factor == 0 && factor != 1.0)
        return wb_fail(WB_UNSUPPORTED, "partial_rotary_factor: supported is 1, found %.9g", factor);
    if (!(factor > 0 && factor <= 1))
        return wb_fail(WB_INVALID_ARGUMENT, "partial_rotary_factor: expected above 0, at most 1, found %.9g",
                       factor);
    if (factor == 1.0) return WB_OK;
    c->rotary_dim = (int32_t)(c->head_dim * factor);
    if (c->rotary_dim >= 2 && c->rotary_dim % 2 == 0) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "partial_rotary_factor: expected an even number of the %d dimensions of a head, found %d",
                   c->head_dim, c->rotary_dim);
}

/* ---- checking and writing -------------------------------------------------------------------- */

static wb_status check_yarn(const wb_rope_scaling *s) {
    WB_TRY(wb_config_positive("rope scaling: beta_fast", s->beta_fast));
    WB_TRY(wb_config_positive("rope scaling: beta_slow", s->beta_slow));
    return wb_config_in_range("rope scaling: original_max_position_embeddings", s->original_positions, 1,
                              INT32_MAX);
}

wb_status wb_config_check_rope(const wb_config *c, const wb_family_rules *rules) {
    const wb_rope_scaling *s = &c->rope_scaling;
    WB_TRY(wb_config_positive("rope_theta", c->rope_theta));
    WB_TRY(wb_config_in_range("rope scaling: type", s->type, 0, N_ROPE_TYPES - 1));
    if (s->type != WB_ROPE_PLAIN) WB_TRY(wb_config_positive("rope scaling: factor", s->factor));
    if (s->type == WB_ROPE_YARN) WB_TRY(check_yarn(s));
    if (c->rotary_dim == 0) return WB_OK;
    if (rules->rotary_factor == 0)
        return wb_fail(WB_INVALID_ARGUMENT, "rotary_dim: expected 0 for %s, found %d", rules->model_type,
                       c->rotary_dim);
    if (c->rotary_dim % 2 != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "rotary_dim: expected an even number, found %d", c->rotary_dim);
    return wb_config_in_range("rotary_dim", c->rotary_dim, 2, c->head_dim);
}

static int put_given(json_t *object, const char *key, double value) {
    return value == 0 ? 0 : json_object_set_new(object, key, json_real(value));
}

static json_t *write_scaling(const wb_rope_scaling *s) {
    json_t *object = json_object();
    int failed = !object || json_object_set_new(object, "rope_type", json_string(rope_types[s->type])) ||
                 put_given(object, "factor", s->factor);
    if (!failed && s->type == WB_ROPE_YARN)
        failed = json_object_set_new(object, "beta_fast", json_real(s->beta_fast)) ||
                 json_object_set_new(object, "beta_slow", json_real(s->beta_slow)) ||
                 json_object_set_new(object, "original_max_position_embeddings",
                                     json_integer(s->original_positions)) ||
                 json_object_set_new(object, "truncate", json_boolean(s->truncate)) ||
                 put_given(object, "attention_factor", s->attention_factor) ||
                 put_given(object, "mscale", s->mscale) ||
                 put_given(object, "mscale_all_dim", s->mscale_all_dim);
    if (!failed) return object;
    json_decref(object);
    return NULL;
}

int wb_config_write_rope(const wb_config *c, const wb_family_rules *rules, json_t *root) {
    /* A family that scales where nothing is said is told that this model does not. */
    const bool said = c->rope_scaling.type != WB_ROPE_PLAIN || rules->rope_scaling.type != WB_ROPE_PLAIN;
    double turned = c->rotary_dim > 0 ? (double)c->rotary_dim / c->head_dim : 1.0;
    /* Readers cut the product: a quotient that was rounded down would make it one less. */
    if ((int32_t)(c->head_dim * turned) < c->rotary_dim) turned = nextafter(turned, 1.0);
    return json_object_set_new(root, "rope_theta", json_real(c->rope_theta)) ||
           json_object_set_new(root, "rope_scaling", said ? write_scaling(&c->rope_scaling) : json_null()) ||
           (rules->rotary_factor > 0 &&
            json_object_set_new(root, "partial_rotary_factor", json_real(turned)));
}
