/* test_config_defaults.c - what is meant where a key of config.json is absent is what the family's class in
 * transformers makes of it (make_config_defaults.py). */
#include "support/temp_files.h"

#include "config.h"

static temp_path dir;
static json_t *defaults;

static int setup(void **state) {
    (void)state;
    dir = temp_dir();
    defaults = json_load_file(temp_in(WB_TEST_DATA, "config_defaults.json").text, 0, NULL);
    return defaults ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    json_decref(defaults);
    temp_remove(dir);
    return 0;
}

static wb_config load(const char *family, const json_t *root) {
    wb_config config;
    assert_int_equal(json_dump_file(root, temp_in(dir.text, "config.json").text, 0), 0);
    if (wb_config_load(dir.text, &config) != WB_OK) fail_msg("%s: %s", family, wb_error_message());
    return config;
}

/* All that a configuration says, as a new config.json. */
static char *text_of(const wb_config *config) {
    char *text = NULL;
    assert_int_equal(wb_config_text(config, wb_family_rules_of(config->family), NULL, WB_F32, &text), WB_OK);
    return text;
}

/* A file with the keys that there have to be means what one means that has all of them. */
static void test_rule_34_absent_keys_mean_what_they_mean_in_transformers(void **state) {
    (void)state;
    const char *family;
    json_t *of;
    const json_t *families = json_object_get(defaults, "families");
    assert_int_equal(json_object_size(families), WB_N_FAMILIES);
    json_object_foreach((json_t *)(uintptr_t)families, family, of) {
        const wb_config least = load(family, json_object_get(of, "required"));
        const wb_config whole = load(family, json_object_get(of, "complete"));
        char *found = text_of(&least), *expected = text_of(&whole);
        assert_string_equal(found, expected);
        free(found);
        free(expected);
    }
}

/* A configuration that is made from sizes has the family's router, as long as its experts fit the groups. */
static void test_a_configuration_of_sizes_has_the_routers_of_the_family(void **state) {
    (void)state;
    const char *family;
    json_t *of;
    json_object_foreach(json_object_get(defaults, "families"), family, of) {
        const wb_config read = load(family, json_object_get(of, "required"));
        wb_config made = read;
        made.router = (wb_router){.n_experts = read.router.n_experts, .top_k = read.router.top_k};
        assert_int_equal(wb_config_complete(&made), WB_OK);
        assert_int_equal(made.router.type, read.router.type);
        /* 0 is one group too. */
        assert_int_equal(made.router.n_group, read.router.n_group > 0 ? read.router.n_group : 1);
        assert_int_equal(made.router.topk_group, read.router.topk_group > 0 ? read.router.topk_group : 1);
        assert_true(made.router.scale == read.router.scale && made.router.normalize == read.router.normalize);
        made.router.n_experts = 13;
        made.router.top_k = 8;
        assert_int_equal(wb_config_complete(&made), WB_OK);
        assert_true(made.router.n_group == 1 && made.router.topk_group == 1);
        assert_true(made.router.scale == read.router.scale);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_34_absent_keys_mean_what_they_mean_in_transformers),
        cmocka_unit_test(test_a_configuration_of_sizes_has_the_routers_of_the_family),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
