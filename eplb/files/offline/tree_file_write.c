/* tree_file_write.c - writing: a tree as JSON, msgpack or YAML into a file that appears whole or not at
 * all. */
#include "files/offline/tree_file.h"
#include "wb_file.h"
#include "wb_msgpack_scan.h"

#include <errno.h>
#include <msgpack.h>
#include <string.h>

/* ---- bytes to the file ----------------------------------------------------------------------- */

/* Both encoders hand over a few bytes at a time: they are gathered here. */
typedef struct tree_writer {
    wb_new_file file;
    wb_status status; /* of the first write that failed */
    size_t used;
    char buffer[1 << 14];
} tree_writer;

static wb_status flush(tree_writer *w) {
    if (w->status == WB_OK && w->used > 0) w->status = wb_new_file_write(&w->file, w->buffer, w->used);
    w->used = 0;
    return w->status;
}

/* Nonzero on failure, which ends the encoding: the signature is Jansson's and msgpack's alike, but for the
 * order of the arguments. */
static int put(tree_writer *w, const char *bytes, size_t size) {
    while (size > 0 && w->status == WB_OK) {
        size_t room = sizeof w->buffer - w->used, n = size < room ? size : room;
        memcpy(w->buffer + w->used, bytes, n);
        w->used += n;
        bytes += n;
        size -= n;
        if (w->used == sizeof w->buffer) (void)flush(w);
    }
    return w->status == WB_OK ? 0 : -1;
}

static int put_json(const char *bytes, size_t size, void *writer) {
    return put(writer, bytes, size);
}

static int put_msgpack(void *writer, const char *bytes, size_t size) {
    return put(writer, bytes, size);
}

/* ---- trees to bytes -------------------------------------------------------------------------- */

static bool pack(msgpack_packer *packer, const json_t *node, unsigned depth);

static bool pack_object(msgpack_packer *packer, const json_t *node, unsigned depth) {
    const char *key;
    json_t *child;
    bool fits = depth < WB_SCAN_MAX_DEPTH;
    msgpack_pack_map(packer, json_object_size(node));
    /* Jansson's loop over an object wants a json_t that is not const, and changes nothing. */
    json_object_foreach((json_t *)(uintptr_t)node, key, child) {
        if (!fits) break;
        msgpack_pack_str_with_body(packer, key, strlen(key));
        fits = pack(packer, child, depth + 1);
    }
    return fits;
}

static bool pack_array(msgpack_packer *packer, const json_t *node, unsigned depth) {
    json_t *child;
    size_t i;
    bool fits = depth < WB_SCAN_MAX_DEPTH;
    msgpack_pack_array(packer, json_array_size(node));
    json_array_foreach(node, i, child) {
        if (!fits) break;
        fits = pack(packer, child, depth + 1);
    }
    return fits;
}

/* False when the tree is deeper than a reader takes. A failed write stays in the writer's status. */
static bool pack(msgpack_packer *packer, const json_t *node, unsigned depth) {
    switch (json_typeof(node)) {
    case JSON_OBJECT:
        return pack_object(packer, node, depth);
    case JSON_ARRAY:
        return pack_array(packer, node, depth);
    case JSON_STRING:
        msgpack_pack_str_with_body(packer, json_string_value(node), json_string_length(node));
        return true;
    case JSON_INTEGER:
        msgpack_pack_int64(packer, json_integer_value(node));
        return true;
    case JSON_REAL:
        msgpack_pack_double(packer, json_real_value(node));
        return true;
    case JSON_TRUE:
        msgpack_pack_true(packer);
        return true;
    case JSON_FALSE:
        msgpack_pack_false(packer);
        return true;
    case JSON_NULL:
        msgpack_pack_nil(packer);
        return true;
    }
    return false;
}

static bool is_json_name(const char *path) {
    size_t length = strlen(path);
    return length >= 5 && strcmp(path + length - 5, ".json") == 0;
}

static wb_status write_json(tree_writer *w, const char *path, const json_t *root) {
    errno = 0;
    bool done = json_dump_callback(root, put_json, w, JSON_COMPACT) == 0 && put(w, "\n", 1) == 0;
    if (done || w->status != WB_OK) return w->status;
    if (errno == ENOMEM) return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory to write JSON", path);
    return wb_fail(WB_INVALID_ARGUMENT, "%s: the tree is no JSON", path);
}

static wb_status write_msgpack(tree_writer *w, const char *path, const json_t *root) {
    msgpack_packer packer;
    msgpack_packer_init(&packer, w, put_msgpack);
    if (pack(&packer, root, 0)) return w->status;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: the tree is deeper than %d", path, WB_SCAN_MAX_DEPTH);
}

/* Keys that are numbers stay numbers there, which JSON does not have. */
static bool put_yaml(tree_writer *w, const json_t *map, unsigned depth) {
    const char *key;
    json_t *child;
    json_object_foreach((json_t *)(uintptr_t)map, key, child) {
        for (unsigned i = 0; i < depth; i++)
            if (put(w, "  ", 2) != 0) return false;
        if (put(w, key, strlen(key)) != 0 || put(w, ":", 1) != 0) return false;
        if (json_is_object(child)) {
            if (put(w, "\n", 1) != 0 || !put_yaml(w, child, depth + 1)) return false;
            continue;
        }
        if (put(w, " ", 1) != 0 ||
            json_dump_callback(child, put_json, w, JSON_COMPACT | JSON_ENCODE_ANY) != 0 ||
            put(w, "\n", 1) != 0)
            return false;
    }
    return true;
}

static wb_status write_yaml(tree_writer *w, const char *path, const json_t *root) {
    if (put_yaml(w, root, 0) || w->status != WB_OK) return w->status;
    return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory to write YAML", path);
}

typedef wb_status write_function(tree_writer *w, const char *path, const json_t *root);

static wb_status write_tree(const char *path, const json_t *root, write_function *write) {
    tree_writer w = {.status = WB_OK};
    WB_TRY(wb_new_file_open(path, &w.file));
    wb_status status = write(&w, path, root);
    if (status == WB_OK) status = flush(&w);
    if (status == WB_OK) status = wb_new_file_sync(&w.file);
    if (status == WB_OK) status = wb_new_file_commit(&w.file);
    if (status != WB_OK) wb_new_file_discard(&w.file);
    return status;
}

wb_status wb_tree_write(const char *path, const json_t *root) {
    return write_tree(path, root, is_json_name(path) ? write_json : write_msgpack);
}

wb_status wb_tree_write_json(const char *path, const json_t *root) {
    return write_tree(path, root, write_json);
}

wb_status wb_tree_write_yaml(const char *path, const json_t *root) {
    return write_tree(path, root, is_json_name(path) ? write_json : write_yaml);
}
