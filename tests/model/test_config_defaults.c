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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_34_absent_keys_mean_what_they_mean_in_transformers),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
