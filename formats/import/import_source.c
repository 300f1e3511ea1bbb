/* import_source.c - see import_source.h. */
#include "import/import_source.h"
#include "import/import_inflate.h"
#include "wb_check.h"
#include "wb_msgpack_scan.h"
#include "wb_zip.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- JSON ----------------------------------------------------------------------------------------- */

static bool is_blank(uint8_t c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static void skip_blanks(import_source *s) {
    for (; s->pos < s->size && is_blank(s->bytes[s->pos]); s->pos++) s->line += s->bytes[s->pos] == '\n';
}

static size_t line_end(const import_source *s) {
    const uint8_t *end = memchr(s->bytes + s->pos, '\n', s->size - s->pos);
    return end ? (size_t)(end - s->bytes) : s->size;
}

static bool begins(const import_source *s, const char *word) {
    const size_t length = strlen(word);
    return s->size - s->pos >= length && memcmp(s->bytes + s->pos, word, length) == 0;
}

/* To the JSON of the next event of a stream: what follows "data:", but for the end that OpenAI's streams
 * have. Other fields of an event are passed over. */
static void skip_to_event(import_source *s) {
    for (skip_blanks(s); s->pos < s->size; skip_blanks(s)) {
        if (begins(s, "data:")) {
            s->pos += 5;
            skip_blanks(s);
            if (!begins(s, "[DONE]")) return;
        }
        s->pos = line_end(s);
    }
}

/* A document ends where its value does: it may go over several lines, and several may stand on one. One that
 * is broken ends with the line it began on. */
static wb_status next_json(import_source *s) {
    json_error_t error;
    /* jansson counts the bytes that it has read in an int. */
    const size_t left = s->size - s->pos, bytes = left < INT_MAX ? left : INT_MAX;
    s->json =
        json_loadb((const char *)s->bytes + s->pos, bytes, JSON_DISABLE_EOF_CHECK | JSON_ALLOW_NUL, &error);
    snprintf(s->where, sizeof s->where, "line %" PRIu64, s->line);
    if (s->json) {
        const size_t end = s->pos + (size_t)error.position;
        for (; s->pos < end; s->pos++) s->line += s->bytes[s->pos] == '\n';
        return WB_OK;
    }
    s->pos = line_end(s);
    if (json_error_code(&error) == json_error_out_of_memory)
        return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for its JSON", s->where);
    char down[32] = "";
    if (error.line > 1) snprintf(down, sizeof down, "%d lines down, ", error.line - 1);
    return wb_fail(WB_CORRUPT, "%s: JSON, %scolumn %d: %s", s->where, down, error.column, error.text);
}

/* ---- msgpack -------------------------------------------------------------------------------------- */

/* msgpack-c asks for the memory that a count names, so the bytes are walked first. */
static wb_status next_msgpack(import_source *s) {
    wb_scan scan = wb_scan_range(s->bytes, s->pos, s->size);
    const size_t begin = s->pos;
    snprintf(s->where, sizeof s->where, "object %" PRIu64, s->documents);
    s->pos = s->size;
    if (!wb_scan_skip(&scan))
        return wb_fail(WB_CORRUPT, "%s: byte %zu: expected msgpack: %s", s->where, scan.error_pos, scan.why);
    size_t at = 0;
    s->zone = msgpack_zone_new(MSGPACK_ZONE_CHUNK_SIZE);
    if (!s->zone) return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for its msgpack", s->where);
    const msgpack_unpack_return result =
        msgpack_unpack((const char *)s->bytes + begin, scan.pos - begin, &at, s->zone, &s->object);
    if (result != MSGPACK_UNPACK_SUCCESS && result != MSGPACK_UNPACK_EXTRA_BYTES)
        return wb_fail(result == MSGPACK_UNPACK_NOMEM_ERROR ? WB_OUT_OF_MEMORY : WB_CORRUPT,
                       "%s: byte %zu: expected msgpack", s->where, begin);
    s->pos = scan.pos;
    return WB_OK;
}

/* ---- numpy ---------------------------------------------------------------------------------------- */

static wb_status read_member(const wb_zip *zip, size_t *at, wb_owner *memory, import_member *member_out) {
    wb_zip_name name;
    wb_zip_member file;
    WB_TRY(wb_zip_next(zip, at, &name, &file));
    member_out->name = name.text;
    member_out->length = name.length;
    if (name.length > 4 && memcmp(name.text + name.length - 4, ".npy", 4) == 0) member_out->length -= 4;
    const uint8_t *bytes = NULL;
    size_t size = 0;
    wb_status status = wb_import_inflate(&file, memory, &bytes, &size);
    if (status == WB_OK) status = wb_import_npy(bytes, size, memory, &member_out->array);
    /* Batches have members that no importer asks for, such as objects: they are as if they had no value. */
    if (status == WB_UNSUPPORTED) return WB_OK;
    if (status != WB_OK)
        return wb_fail_context(status, "%.*s", name.length < 80 ? (int)name.length : 80, name.text);
    return WB_OK;
}

static wb_status open_npz(import_source *s) {
    wb_zip zip;
    import_member *members = NULL;
    WB_TRY(wb_zip_open(s->bytes, s->size, &zip));
    WB_TRY(wb_zip_check(&zip));
    WB_TRY(WB_OWN(&s->memory, members, (size_t)zip.n_members, ".npz"));
    size_t at = zip.directory;
    for (uint64_t i = 0; i < zip.n_members; i++) WB_TRY(read_member(&zip, &at, &s->memory, &members[i]));
    s->members = members;
    s->list = wb_import_of_members(members, (size_t)zip.n_members);
    return WB_OK;
}

static wb_status open_npy(import_source *s) {
    import_member *member = NULL;
    WB_TRY(WB_OWN(&s->memory, member, 1, ".npy"));
    WB_TRY(wb_import_npy(s->bytes, s->size, &s->memory, &member->array));
    member->name = "routed_experts";
    member->length = strlen(member->name);
    s->members = member;
    s->list = wb_import_of_members(member, 1);
    return WB_OK;
}

/* ---- all of them ---------------------------------------------------------------------------------- */

/* An answer is a map, and a file of msgpack begins with one or with a list of them. */
static bool may_be_msgpack(uint8_t first) {
    return (first >= 0x80 && first <= 0x9f) || (first >= 0xdc && first <= 0xdf);
}

/* Such as the page of a proxy in front of the engine, or an archive of another kind. */
static wb_status refuse_form(const uint8_t *bytes, size_t size) {
    char found[24];
    size_t n = size < sizeof found - 1 ? size : sizeof found - 1;
    for (size_t i = 0; i < n; i++) found[i] = bytes[i] >= ' ' && bytes[i] <= '~' ? (char)bytes[i] : '.';
    found[n] = '\0';
    return wb_fail(WB_CORRUPT,
                   "expected JSON, the events of a stream, msgpack, .npz or .npy, found a file that begins "
                   "with \"%s\"",
                   found);
}

wb_status wb_import_source_open(const uint8_t *bytes, size_t size, import_source *source_out) {
    import_source s = {.bytes = bytes, .size = size, .line = 1, .form = IMPORT_MSGPACK};
    wb_status status = WB_OK;
    if (wb_import_is_npy(bytes, size)) {
        s.form = IMPORT_NPY;
        status = open_npy(&s);
    } else if (begins(&s, "PK\x03\x04") || begins(&s, "PK\x05\x06")) {
        s.form = IMPORT_NPZ;
        status = open_npz(&s);
    } else {
        if (begins(&s, "\xef\xbb\xbf")) s.pos = 3; /* the mark that some editors put before UTF-8 */
        skip_blanks(&s);
        if (s.pos == size || bytes[s.pos] == '{' || bytes[s.pos] == '[') s.form = IMPORT_JSON;
        if (begins(&s, "data:") || begins(&s, "event:") || begins(&s, "id:") || begins(&s, ": "))
            s.form = IMPORT_EVENTS;
        if (s.form == IMPORT_MSGPACK) s.pos = 0;
        if (s.form == IMPORT_MSGPACK && !may_be_msgpack(bytes[0])) status = refuse_form(bytes, size);
    }
    if (status != WB_OK) {
        wb_owner_close(&s.memory);
        return status;
    }
    *source_out = s;
    return WB_OK;
}

static void forget_document(import_source *s) {
    json_decref(s->json);
    if (s->zone) msgpack_zone_free(s->zone);
    s->json = NULL;
    s->zone = NULL;
}

void wb_import_source_close(import_source *source) {
    forget_document(source);
    wb_owner_close(&source->memory);
}

/* A list of answers is as many documents, and so are the samples of a step that slime keeps together. Kind
 * NONE: the document is one answer, as [data, shape, dtype] is. */
static import_value answers_of(const import_value *document) {
    const import_value samples = wb_import_get(document, "samples");
    const import_value *list = document->kind == IMPORT_LIST ? document : &samples;
    if (list->kind != IMPORT_LIST || list->length == 0) return (import_value){0};
    const import_value first = wb_import_at(list, 0);
    const bool are_answers = first.kind == IMPORT_MAP || (list == document && first.kind == IMPORT_LIST);
    return are_answers ? *list : (import_value){0};
}

static wb_status next_whole(import_source *s, import_value *value_out, bool *found_out) {
    forget_document(s);
    if (s->form == IMPORT_EVENTS) skip_to_event(s);
    if (s->form == IMPORT_JSON) skip_blanks(s);
    *found_out = s->pos < s->size;
    s->begin = s->pos;
    if (!*found_out) return WB_OK;
    s->documents++;
    if (s->members) {
        s->pos = s->size;
        s->where[0] = '\0';
        *value_out = s->list;
        return WB_OK;
    }
    const bool is_json = s->form != IMPORT_MSGPACK;
    WB_TRY(is_json ? next_json(s) : next_msgpack(s));
    *value_out = is_json ? wb_import_of_json(s->json) : wb_import_of_msgpack(&s->object);
    return WB_OK;
}

wb_status wb_import_source_next(import_source *source, import_value *value_out, bool *found_out) {
    if (source->list.kind != IMPORT_LIST || source->next_item >= source->list.length) {
        if (source->list.kind == IMPORT_LIST) source->list.kind = IMPORT_NONE;
        WB_TRY(next_whole(source, value_out, found_out));
        if (!*found_out) return WB_OK;
        const import_value answers = answers_of(value_out);
        if (answers.kind == IMPORT_NONE) return WB_OK;
        source->list = answers;
        source->next_item = 0;
    }
    char *comma = strchr(source->where, ',');
    const size_t length = comma ? (size_t)(comma - source->where) : strlen(source->where);
    *value_out = wb_import_at(&source->list, source->next_item++);
    *found_out = true;
    snprintf(source->where + length, sizeof source->where - length, ", item %zu", source->next_item);
    return WB_OK;
}
