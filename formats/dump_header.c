/* dump_header.c - reads a dump's header. It is small, bounded and nested, so msgpack-c makes a tree of it,
 * after the cursor has walked it (wb_object_end). Refuses: other formats, other versions, a model that is
 * not well formed, a dtype that is not the one of E. */
#include "dump_layout.h"
#include "dump_parse.h"

#include <inttypes.h>
#include <msgpack.h>
#include <string.h>

typedef struct header_tree {
    const wb_file_bytes *file;
    wb_owner *memory; /* of what the result points to */
    const msgpack_object *map;
    const char *where; /* "header" or "header model", for messages */
} header_tree;

static wb_status header_fail(const header_tree *tree, const char *key, const char *expected) {
    return wb_fail(WB_CORRUPT, "%s: byte 0: %s: %s: expected %s", tree->file->name, tree->where, key,
                   expected);
}

/* The value of `key`, NULL without one; not twice. */
static wb_status find(const header_tree *tree, const char *key, const msgpack_object **out) {
    const msgpack_object *found = NULL;
    for (uint32_t i = 0; i < tree->map->via.map.size; i++) {
        const msgpack_object_kv *pair = &tree->map->via.map.ptr[i];
        if (pair->key.type != MSGPACK_OBJECT_STR || pair->key.via.str.size != strlen(key) ||
            memcmp(pair->key.via.str.ptr, key, strlen(key)) != 0)
            continue;
        if (found) return header_fail(tree, key, "the key once");
        found = &pair->val;
    }
    *out = found;
    return WB_OK;
}

/* The value of `key`, of `type`; exactly one such key. */
static wb_status get(const header_tree *tree, const char *key, msgpack_object_type type, const char *expected,
                     const msgpack_object **out) {
    const msgpack_object *found = NULL;
    WB_TRY(find(tree, key, &found));
    if (!found || found->type != type) return header_fail(tree, key, expected);
    *out = found;
    return WB_OK;
}

static wb_status get_u32(const header_tree *tree, const char *key, uint32_t *out) {
    const msgpack_object *value = NULL;
    WB_TRY(get(tree, key, MSGPACK_OBJECT_POSITIVE_INTEGER, "an unsigned integer", &value));
    if (value->via.u64 > UINT32_MAX) return header_fail(tree, key, "an integer below 2^32");
    *out = (uint32_t)value->via.u64;
    return WB_OK;
}

/* Copies a string into a field of `capacity` bytes. */
static wb_status get_text(const header_tree *tree, const char *key, char *field, size_t capacity) {
    const msgpack_object *value = NULL;
    WB_TRY(get(tree, key, MSGPACK_OBJECT_STR, "a string", &value));
    size_t size = value->via.str.size;
    if (size >= capacity || memchr(value->via.str.ptr, 0, size))
        return header_fail(tree, key, "a shorter string");
    memcpy(field, value->via.str.ptr, size);
    field[size] = '\0';
    return WB_OK;
}

static wb_status get_list(const header_tree *tree, const char *key, const uint32_t **list_out,
                          uint32_t *n_out) {
    const msgpack_object *value = NULL;
    WB_TRY(get(tree, key, MSGPACK_OBJECT_ARRAY, "an array", &value));
    uint32_t n = value->via.array.size;
    uint32_t *list = NULL;
    WB_TRY(WB_OWN(tree->memory, list, n, "lists of a dump's header"));
    for (uint32_t i = 0; i < n; i++) {
        const msgpack_object *member = &value->via.array.ptr[i];
        if (member->type != MSGPACK_OBJECT_POSITIVE_INTEGER || member->via.u64 > UINT32_MAX)
            return header_fail(tree, key, "integers below 2^32");
        list[i] = (uint32_t)member->via.u64;
    }
    *list_out = list;
    *n_out = n;
    return WB_OK;
}

/* A number, or one for each MoE layer. */
static wb_status get_top_k(const header_tree *tree, wb_route_model *m) {
    const msgpack_object *found = NULL;
    uint32_t n = 0;
    WB_TRY(find(tree, "top_k", &found));
    if (!found || found->type != MSGPACK_OBJECT_ARRAY) return get_u32(tree, "top_k", &m->top_k);
    WB_TRY(get_list(tree, "top_k", &m->layer_top_k, &n));
    if (n != m->n_moe_layers) return header_fail(tree, "top_k", "one for each of moe_layers");
    for (uint32_t l = 0; l < n; l++)
        if (m->layer_top_k[l] > m->top_k) m->top_k = m->layer_top_k[l];
    return WB_OK;
}

/* 0 where there is no such key. */
static wb_status get_optional_u32(const header_tree *tree, const char *key, uint32_t *out) {
    const msgpack_object *found = NULL;
    WB_TRY(find(tree, key, &found));
    return found ? get_u32(tree, key, out) : WB_OK;
}

static wb_status get_hash_layers(const header_tree *tree, wb_route_model *m) {
    const msgpack_object *found = NULL;
    WB_TRY(find(tree, "hash_layers", &found));
    return found ? get_list(tree, "hash_layers", &m->hash_layers, &m->n_hash_layers) : WB_OK;
}

/* The map `indexer`, which models without one do not have. */
static wb_status get_indexer(const header_tree *tree, wb_route_model *m) {
    header_tree indexer = {tree->file, tree->memory, NULL, "header model indexer"};
    const msgpack_object *found = NULL;
    uint32_t n_sources = 0;
    WB_TRY(find(tree, "indexer", &found));
    if (!found) return WB_OK;
    WB_TRY(get(tree, "indexer", MSGPACK_OBJECT_MAP, "a map", &indexer.map));
    WB_TRY(get_list(&indexer, "layers", &m->indexer_layers, &m->n_indexer_layers));
    WB_TRY(get_list(&indexer, "source", &m->indexer_source, &n_sources));
    if (n_sources != m->n_indexer_layers || n_sources == 0)
        return header_fail(&indexer, "source", "one for each of the layers, which are some");
    WB_TRY(get_u32(&indexer, "k", &m->indexer_k));
    return get_optional_u32(&indexer, "rate", &m->indexer_rate);
}

static wb_status read_model(const header_tree *header, wb_route_model *out) {
    header_tree tree = {header->file, header->memory, NULL, "header model"};
    WB_TRY(get(header, "model", MSGPACK_OBJECT_MAP, "a map", &tree.map));
    wb_route_model m = {0};
    WB_TRY(get_text(&tree, "name", m.name, sizeof m.name));
    WB_TRY(get_text(&tree, "fingerprint", m.fingerprint, sizeof m.fingerprint));
    WB_TRY(get_text(&tree, "router", m.router, sizeof m.router));
    WB_TRY(get_u32(&tree, "num_hidden_layers", &m.num_hidden_layers));
    WB_TRY(get_u32(&tree, "num_experts", &m.num_experts));
    WB_TRY(get_list(&tree, "moe_layers", &m.moe_layers, &m.n_moe_layers));
    WB_TRY(get_top_k(&tree, &m));
    WB_TRY(get_optional_u32(&tree, "weightless", &m.n_weightless));
    WB_TRY(get_hash_layers(&tree, &m));
    WB_TRY(get_indexer(&tree, &m));
    if (wb_route_model_check(&m) != WB_OK)
        return wb_fail_context(WB_CORRUPT, "%s: byte 0: header", tree.file->name);
    *out = m;
    return WB_OK;
}

/* The header says which format, version and element type it has: of those only ours are read. */
static wb_status check_kind(const header_tree *tree) {
    char format[64];
    uint32_t version = 0;
    if (get_text(tree, "format", format, sizeof format) != WB_OK || strcmp(format, WB_DUMP_FORMAT) != 0)
        return wb_fail(WB_UNSUPPORTED, "%s: not a %s file", tree->file->name, WB_DUMP_FORMAT);
    WB_TRY(get_u32(tree, "version", &version));
    if (version != WB_DUMP_VERSION)
        return wb_fail(WB_UNSUPPORTED, "%s: version %" PRIu32 " of the format; this program reads version %d",
                       tree->file->name, version, WB_DUMP_VERSION);
    return WB_OK;
}

static wb_status check_dtype(const header_tree *tree, uint32_t num_experts) {
    char dtype[16];
    WB_TRY(get_text(tree, "dtype", dtype, sizeof dtype));
    const char *expected = wb_dtype_name(wb_route_dtype(num_experts));
    if (strcmp(dtype, expected) == 0) return WB_OK;
    return wb_fail(WB_UNSUPPORTED, "%s: dtype: expected %s for %" PRIu32 " experts, found %s",
                   tree->file->name, expected, num_experts, dtype);
}

static wb_status read_header(const header_tree *tree, uint64_t end, wb_route_model *out) {
    if (tree->map->type != MSGPACK_OBJECT_MAP)
        return wb_fail(WB_UNSUPPORTED, "%s: not a %s file", tree->file->name, WB_DUMP_FORMAT);
    WB_TRY(check_kind(tree));
    wb_hash hash;
    wb_hash_start(&hash);
    WB_TRY(wb_seal_check(tree->file, 0, end, 0, &hash));
    wb_route_model m;
    WB_TRY(read_model(tree, &m));
    WB_TRY(check_dtype(tree, m.num_experts));
    *out = m;
    return WB_OK;
}

wb_status wb_parse_header(const wb_file_bytes *file, uint64_t end, wb_owner *memory,
                          wb_route_model *model_out) {
    if (end > WB_HEADER_BYTES_MAX)
        return wb_fail(WB_UNSUPPORTED, "%s: byte 0: a header of %" PRIu64 " bytes is over the limit of %zu",
                       file->name, end, WB_HEADER_BYTES_MAX);
    msgpack_unpacked unpacked;
    msgpack_unpacked_init(&unpacked);
    size_t at = 0;
    wb_status status;
    msgpack_unpack_return result =
        msgpack_unpack_next(&unpacked, (const char *)file->bytes, (size_t)end, &at);
    if (result == MSGPACK_UNPACK_SUCCESS) {
        header_tree tree = {file, memory, &unpacked.data, "header"};
        status = read_header(&tree, end, model_out);
    } else {
        /* The cursor has found the bytes to be well formed, so that msgpack-c can lack memory alone. */
        status = wb_fail(WB_OUT_OF_MEMORY, "%s: header: no memory", file->name);
    }
    msgpack_unpacked_destroy(&unpacked);
    return status;
}
