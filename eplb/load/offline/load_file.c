/* load_file.c - load statistics as a file, and back. Owns: the layout below. Refuses: the pass that is
 * open (it is not part of the file), sizes and counts that it has not checked, files of another version.
 *
 *   {"format": "waybill.loads", "version": 1, "window": W, "decay": d, "passes_seen": n,
 *    "regions": [{"name", "n_layers": L, "n_experts": E, "n_shared", "on": bool,
 *                 "passes": [{"prefill": [L][E], "decode": [L][E], "replay": [L][E]}]}],
 *    "logical_count": [passes][L][E]}
 *
 * Passes are those of the window, the oldest first, as many in every region; a phase that is all zero is
 * left out. Counts are whole numbers below 2^32. logical_count is the first region's sum over phases, for
 * readers that know nothing else; it has to agree with the passes. Other keys are skipped. */
#include "files/offline/tree_file.h"
#include "load/load_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define FORMAT "waybill.loads"
#define VERSION 1

enum { MAX_NUMBERS = (1 << 30) / 12 };

/* ---- writing -------------------------------------------------------------------------------------- */

/* [L][E] of a pass, summed over a set of phases; NULL for want of memory, as from Jansson. */
static json_t *matrix_of(const wb_load_table *table, uint32_t place, uint32_t phases) {
    uint32_t L = table->shape.n_layers, E = table->shape.n_experts;
    json_t *matrix = json_array();
    bool failed = false;
    for (uint32_t l = 0; l < L && !failed; l++) {
        json_t *row = json_array();
        for (uint32_t e = 0; e < E && !failed; e++) {
            json_int_t sum = 0;
            for (uint32_t phase = 0; phase < WB_N_PHASES; phase++)
                if (phases >> phase & 1)
                    sum += wb_load_cells(table, place, (wb_phase)phase)[(size_t)l * E + e];
            failed = json_array_append_new(row, json_integer(sum)) != 0;
        }
        failed |= json_array_append_new(matrix, row) != 0;
    }
    if (!failed) return matrix;
    json_decref(matrix);
    return NULL;
}

static bool is_zero(const wb_load_table *table, uint32_t place, wb_phase phase) {
    const uint32_t *cells = wb_load_cells(table, place, phase);
    for (size_t i = 0; i < wb_load_table_cells(&table->shape); i++)
        if (cells[i]) return false;
    return true;
}

static bool put(json_t *object, const char *key, json_t *value) {
    return json_object_set_new(object, key, value) == 0;
}

static bool append_pass(json_t *passes, const wb_load_table *table, uint32_t place) {
    json_t *pass = json_object();
    bool done = pass;
    for (uint32_t phase = 0; phase < WB_N_PHASES && done; phase++)
        if (!is_zero(table, place, (wb_phase)phase))
            done = put(pass, wb_phase_name((wb_phase)phase), matrix_of(table, place, 1u << phase));
    return (json_array_append_new(passes, pass) == 0) & done;
}

static json_t *region_tree(const wb_load *load, const wb_load_table *table) {
    json_t *region = json_object(), *passes = json_array();
    bool done = put(region, "name", json_string(table->shape.name)) &&
                put(region, "n_layers", json_integer(table->shape.n_layers)) &&
                put(region, "n_experts", json_integer(table->shape.n_experts)) &&
                put(region, "n_shared", json_integer(table->shape.n_shared)) &&
                put(region, "on", json_boolean(table->on));
    for (uint32_t age = load->passes; age-- > 0 && done;)
        done = append_pass(passes, table, wb_load_place(load, age));
    if (put(region, "passes", passes) && done) return region;
    json_decref(region);
    return NULL;
}

static json_t *regions_tree(const wb_load *load) {
    json_t *regions = json_array();
    for (uint32_t i = 0; i < load->n_regions; i++) {
        if (json_array_append_new(regions, region_tree(load, &load->regions[i])) == 0) continue;
        json_decref(regions);
        return NULL;
    }
    return regions;
}

static json_t *logical_counts(const wb_load *load) {
    json_t *counts = json_array();
    for (uint32_t age = load->passes; age-- > 0;) {
        json_t *pass = matrix_of(&load->regions[0], wb_load_place(load, age), WB_PHASES_ALL);
        if (json_array_append_new(counts, pass) == 0) continue;
        json_decref(counts);
        return NULL;
    }
    return counts;
}

/* A file that could not be read again is not written: a number takes 12 bytes at most, a file 2^30. */
static wb_status check_size(const wb_load *load, const char *path) {
    uint64_t cells = wb_load_table_cells(&load->regions[0].shape); /* logical_count */
    for (uint32_t i = 0; i < load->n_regions; i++)
        cells += WB_N_PHASES * wb_load_table_cells(&load->regions[i].shape);
    if (cells * load->passes <= MAX_NUMBERS) return WB_OK;
    return wb_fail(WB_CAPACITY,
                   "%s: %" PRIu32 " passes may be %" PRIu64
                   " numbers, expected at most %d: a smaller window fits",
                   path, load->passes, cells * load->passes, MAX_NUMBERS);
}

wb_status wb_load_save(const wb_load *load, const char *path) {
    WB_TRY(check_size(load, path));
    json_t *root = json_object();
    wb_status status;
    if (put(root, "format", json_string(FORMAT)) && put(root, "version", json_integer(VERSION)) &&
        put(root, "window", json_integer(load->window)) && put(root, "decay", json_real(load->decay)) &&
        put(root, "passes_seen", json_integer((json_int_t)load->passes_seen)) &&
        put(root, "regions", regions_tree(load)) && put(root, "logical_count", logical_counts(load)))
        status = wb_tree_write(path, root);
    else
        status = wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for %" PRIu32 " passes", path, load->passes);
    json_decref(root);
    return status;
}

/* ---- reading: values ------------------------------------------------------------------------------ */

/* Where a value stands: "loads.json: region 0", for messages. */
typedef struct file_place {
    char text[256];
} file_place;

static file_place place_of(const char *path, const char *what, size_t i) {
    file_place place;
    snprintf(place.text, sizeof place.text, "%.200s: %s %zu", path, what, i);
    return place;
}

/* The value as a message shows it. */
static file_place shown(const json_t *value) {
    static const char *const types[] = {
        [JSON_OBJECT] = "a map", [JSON_STRING] = "a string", [JSON_TRUE] = "true",
        [JSON_FALSE] = "false",  [JSON_NULL] = "null",
    };
    file_place text;
    if (json_is_integer(value))
        snprintf(text.text, sizeof text.text, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    else if (json_is_real(value))
        snprintf(text.text, sizeof text.text, "%g", json_real_value(value));
    else if (json_is_array(value))
        snprintf(text.text, sizeof text.text, "an array of %zu", json_array_size(value));
    else
        snprintf(text.text, sizeof text.text, "%s", value ? types[json_typeof(value)] : "nothing");
    return text;
}

static wb_status read_whole(const char *where, const json_t *map, const char *key, uint64_t max,
                            uint64_t *out) {
    const json_t *value = json_object_get(map, key);
    if (!json_is_integer(value) || json_integer_value(value) < 0 || (uint64_t)json_integer_value(value) > max)
        return wb_fail(WB_CORRUPT, "%s: %s: expected a whole number up to %" PRIu64 ", found %s", where, key,
                       max, shown(value).text);
    *out = (uint64_t)json_integer_value(value);
    return WB_OK;
}

static wb_status read_u32(const char *where, const json_t *map, const char *key, uint32_t *out) {
    uint64_t value;
    WB_TRY(read_whole(where, map, key, UINT32_MAX, &value));
    *out = (uint32_t)value;
    return WB_OK;
}

static wb_status check_array(const char *where, const char *key, const json_t *value, size_t n) {
    if (json_is_array(value) && json_array_size(value) == n) return WB_OK;
    return wb_fail(WB_CORRUPT, "%s: %s: expected an array of %zu, found %s", where, key, n,
                   shown(value).text);
}

/* ---- reading: the shape --------------------------------------------------------------------------- */

/* What a file says of a handle before its counts. */
typedef struct load_head {
    uint32_t n_regions;
    wb_load_region regions[WB_LOAD_MAX_REGIONS]; /* names: the tree's */
    bool on[WB_LOAD_MAX_REGIONS];
    const json_t *passes[WB_LOAD_MAX_REGIONS];
    wb_load_options options;
    uint32_t n_passes;
    uint64_t passes_seen;
} load_head;

static wb_status read_region(const char *path, const json_t *regions, uint32_t i, load_head *head) {
    file_place at = place_of(path, "region", i);
    const json_t *map = json_array_get(regions, i), *name = json_object_get(map, "name"),
                 *on = json_object_get(map, "on");
    wb_load_region *region = &head->regions[i];
    if (!json_is_string(name))
        return wb_fail(WB_CORRUPT, "%s: name: expected a string, found %s", at.text, shown(name).text);
    region->name = json_string_value(name);
    WB_TRY(read_u32(at.text, map, "n_layers", &region->n_layers));
    WB_TRY(read_u32(at.text, map, "n_experts", &region->n_experts));
    WB_TRY(read_u32(at.text, map, "n_shared", &region->n_shared));
    if (!json_is_boolean(on))
        return wb_fail(WB_CORRUPT, "%s: on: expected true or false, found %s", at.text, shown(on).text);
    head->on[i] = json_is_true(on);
    head->passes[i] = json_object_get(map, "passes");
    size_t n = i == 0 ? json_array_size(head->passes[0]) : head->n_passes;
    WB_TRY(check_array(at.text, "passes", head->passes[i], n));
    if (n > head->options.window)
        return wb_fail(WB_CORRUPT, "%s: passes: expected at most the window of %" PRIu32 ", found %zu",
                       at.text, head->options.window, n);
    head->n_passes = (uint32_t)n;
    return WB_OK;
}

static wb_status check_format(const char *path, const json_t *root) {
    const json_t *format = json_object_get(root, "format"), *version = json_object_get(root, "version");
    if (!json_is_string(format) || strcmp(json_string_value(format), FORMAT) != 0)
        return wb_fail(WB_UNSUPPORTED, "%s: not a %s file", path, FORMAT);
    if (!json_is_integer(version) || json_integer_value(version) != VERSION)
        return wb_fail(WB_UNSUPPORTED, "%s: version %s of the format; this program reads version %d", path,
                       shown(version).text, VERSION);
    return WB_OK;
}

static wb_status read_head(const char *path, const json_t *root, load_head *head) {
    WB_TRY(check_format(path, root));
    const json_t *decay = json_object_get(root, "decay"), *regions = json_object_get(root, "regions");
    size_t n = json_array_size(regions);
    WB_TRY(read_u32(path, root, "window", &head->options.window));
    if (!json_is_number(decay))
        return wb_fail(WB_CORRUPT, "%s: decay: expected a number, found %s", path, shown(decay).text);
    head->options.decay = json_number_value(decay);
    if (n == 0 || n > WB_LOAD_MAX_REGIONS)
        return wb_fail(WB_CORRUPT, "%s: regions: expected an array of 1..%u, found %s", path,
                       WB_LOAD_MAX_REGIONS, shown(regions).text);
    head->n_regions = (uint32_t)n;
    for (uint32_t i = 0; i < head->n_regions; i++) WB_TRY(read_region(path, regions, i, head));
    WB_TRY(read_whole(path, root, "passes_seen", INT64_MAX, &head->passes_seen));
    if (head->passes_seen < head->n_passes)
        return wb_fail(WB_CORRUPT,
                       "%s: passes_seen: expected at least the %" PRIu32 " in the file, found %" PRIu64, path,
                       head->n_passes, head->passes_seen);
    return WB_OK;
}

/* ---- reading: the counts -------------------------------------------------------------------------- */

/* cells [L][E] = matrix, which has to be that. */
static wb_status read_cells(const char *where, const char *phase, const json_t *matrix, uint32_t L,
                            uint32_t E, uint32_t *cells) {
    WB_TRY(check_array(where, phase, matrix, L));
    for (uint32_t l = 0; l < L; l++) {
        const json_t *row = json_array_get(matrix, l);
        if (json_array_size(row) != E)
            return wb_fail(WB_CORRUPT,
                           "%s: %s, layer %" PRIu32 ": expected an array of %" PRIu32 ", found %s", where,
                           phase, l, E, shown(row).text);
        for (uint32_t e = 0; e < E; e++) {
            const json_t *count = json_array_get(row, e);
            json_int_t value = json_integer_value(count);
            if (!json_is_integer(count) || value < 0 || value > UINT32_MAX)
                return wb_fail(WB_CORRUPT,
                               "%s: %s, layer %" PRIu32 ", expert %" PRIu32
                               ": expected a whole number up to %" PRIu32 ", found %s",
                               where, phase, l, e, UINT32_MAX, shown(count).text);
            cells[(size_t)l * E + e] = (uint32_t)value;
        }
    }
    return WB_OK;
}

static wb_status read_passes(const char *path, const json_t *passes, const wb_load_table *table) {
    const wb_load_region *shape = &table->shape;
    for (size_t p = 0; p < json_array_size(passes); p++) {
        const json_t *pass = json_array_get(passes, p);
        file_place at = place_of(path, "pass", p);
        if (!json_is_object(pass))
            return wb_fail(WB_CORRUPT, "%s of region \"%s\": expected a map, found %s", at.text, shape->name,
                           shown(pass).text);
        for (uint32_t phase = 0; phase < WB_N_PHASES; phase++) {
            const char *name = wb_phase_name((wb_phase)phase);
            const json_t *matrix = json_object_get(pass, name);
            if (matrix)
                WB_TRY(read_cells(at.text, name, matrix, shape->n_layers, shape->n_experts,
                                  wb_load_cells(table, (uint32_t)p, (wb_phase)phase)));
        }
    }
    return WB_OK;
}

static wb_status check_logical(const char *path, const json_t *counts, const wb_load *load) {
    WB_TRY(check_array(path, "logical_count", counts, load->passes));
    for (uint32_t p = 0; p < load->passes; p++) {
        json_t *expected = matrix_of(&load->regions[0], p, WB_PHASES_ALL);
        if (!expected) return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for a pass", path);
        bool equal = json_equal(expected, json_array_get(counts, p));
        json_decref(expected);
        if (!equal)
            return wb_fail(WB_CORRUPT,
                           "%s: logical_count, pass %" PRIu32
                           ": expected the sum over phases of region \"%s\"",
                           path, p, load->regions[0].shape.name);
    }
    return WB_OK;
}

/* Pass p of the file goes to place p of the rings, the open pass after the last. */
static wb_status fill(const char *path, const json_t *root, const load_head *head, wb_load *load) {
    for (uint32_t i = 0; i < head->n_regions; i++) {
        load->regions[i].on = head->on[i];
        WB_TRY(read_passes(path, head->passes[i], &load->regions[i]));
    }
    load->open = load->passes = head->n_passes;
    load->passes_seen = head->passes_seen;
    wb_load_sum_window(load);
    return check_logical(path, json_object_get(root, "logical_count"), load);
}

static wb_status read_tree(const char *path, const json_t *root, wb_load **load_out) {
    load_head head = {.options = wb_load_options_default()};
    wb_load *load = NULL;
    WB_TRY(read_head(path, root, &head));
    wb_status status = wb_load_open(head.n_regions, head.regions, &head.options, &load);
    if (status != WB_OK)
        return wb_fail_context(status == WB_INVALID_ARGUMENT ? WB_CORRUPT : status, "%s", path);
    status = fill(path, root, &head, load);
    if (status != WB_OK) {
        wb_load_close(load);
        return status;
    }
    *load_out = load;
    return WB_OK;
}

wb_status wb_load_read(const char *path, wb_load **load_out) {
    json_t *root;
    WB_TRY(wb_tree_read(path, &root));
    wb_status status = read_tree(path, root, load_out);
    json_decref(root);
    return status;
}
