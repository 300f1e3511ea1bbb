/* stop_tokens.c - which tokens end a sample: those of --stop-token, of a task, or of the checkpoint. */
#include "grpo.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static wb_status add_stop(stop_tokens *stops, int64_t id, int32_t vocab_size, const char *where) {
    if (id < 0 || id >= vocab_size)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s: expected token ids below the vocabulary of %" PRId32 ", found %" PRId64, where,
                       vocab_size, id);
    stops->ids[stops->n++] = (uint32_t)id;
    return WB_OK;
}

/* "15", or "15,3" into ids [MAX_STOP_TOKENS]. */
static wb_status read_stops(const char *list, int64_t *ids, uint32_t *n_out) {
    uint32_t n = 0;
    const char *at = list;
    char *end;
    do {
        errno = 0;
        long id = strtol(at, &end, 10);
        if (end == at || errno != 0 || (*end != ',' && *end != '\0') || id < 0 || n == MAX_STOP_TOKENS)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "--stop-token %s: expected none, or at most %d token ids with commas between them",
                           list, MAX_STOP_TOKENS);
        ids[n++] = id;
        at = end + 1;
    } while (*end == ',');
    *n_out = n;
    return WB_OK;
}

static wb_status stops_of_option(stop_tokens *stops, const char *list, int32_t vocab_size) {
    int64_t ids[MAX_STOP_TOKENS];
    uint32_t n;
    WB_TRY(read_stops(list, ids, &n));
    for (uint32_t i = 0; i < n; i++) WB_TRY(add_stop(stops, ids[i], vocab_size, "--stop-token"));
    return WB_OK;
}

wb_status stop_tokens_check(const char *option) {
    int64_t ids[MAX_STOP_TOKENS];
    uint32_t n;
    return !option || strcmp(option, "none") == 0 ? WB_OK : read_stops(option, ids, &n);
}

/* Anything else would be as if it were not there, and no token would end a sample. */
static wb_status check_ids(const json_t *ids, const char *path) {
    bool are_ids = !ids || json_is_null(ids) || json_is_integer(ids) || json_is_array(ids);
    for (size_t i = 0; are_ids && i < json_array_size(ids); i++)
        are_ids = json_is_integer(json_array_get(ids, i));
    if (are_ids) return WB_OK;
    char *text = json_dumps(ids, JSON_COMPACT | JSON_ENCODE_ANY);
    const wb_status status =
        wb_fail(WB_CORRUPT, "%s: eos_token_id: expected a token id, a list of them or null, found %.40s",
                path, text ? text : "something else");
    free(text);
    return status;
}

/* "eos_token_id" of DIR/name: a number or a list of them. *found_out: the file has it. */
static wb_status stops_of_file(stop_tokens *stops, const char *dir, const char *name, int32_t vocab_size,
                               bool *found_out) {
    char path[PATH_BYTES];
    json_t *object;
    WB_TRY(path_join(path, dir, name));
    *found_out = false;
    if (access(path, F_OK) != 0) return WB_OK;
    WB_TRY(text_json(path, &object));
    const json_t *ids = json_object_get(object, "eos_token_id");
    size_t n = json_is_array(ids) ? json_array_size(ids) : json_is_integer(ids);
    wb_status status = check_ids(ids, path);
    if (status == WB_OK && n > MAX_STOP_TOKENS)
        status = wb_fail(WB_CAPACITY, "%s: eos_token_id: expected at most %d ids, found %zu", path,
                         MAX_STOP_TOKENS, n);
    for (size_t i = 0; status == WB_OK && i < n; i++) {
        const json_t *id = json_is_array(ids) ? json_array_get(ids, i) : ids;
        status = add_stop(stops, json_integer_value(id), vocab_size, path);
    }
    *found_out = n > 0;
    json_decref(object);
    return status;
}

wb_status stop_tokens_find(const char *option, const uint32_t *own, const char *dir, int32_t vocab_size,
                           stop_tokens *stops, const char **where_out) {
    static const char *const names[] = {"generation_config.json", "config.json"};
    bool found = false;
    stops->n = 0;
    *where_out = "--stop-token";
    if (option) return strcmp(option, "none") == 0 ? WB_OK : stops_of_option(stops, option, vocab_size);
    *where_out = "the task";
    if (own) return add_stop(stops, *own, vocab_size, "the task");
    for (size_t i = 0; !found && i < sizeof names / sizeof names[0]; i++) {
        *where_out = names[i];
        WB_TRY(stops_of_file(stops, dir, names[i], vocab_size, &found));
    }
    return WB_OK;
}
