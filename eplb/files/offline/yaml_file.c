/* yaml_file.c - see yaml_file.h. Lines are read one after the other; what is deeper indented than a key's
 * line is its value. */
#include "files/offline/yaml_file.h"
#include "wb_msgpack_scan.h"
#include "wb_text.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct yaml {
    const char *path;
    const char *text; /* [size] */
    size_t size, pos;
    unsigned line; /* of pos, from 1 */
} yaml;

static wb_status refuse(const yaml *y, const char *expected) {
    return wb_fail(WB_CORRUPT, "%s: YAML line %u: expected %s", y->path, y->line, expected);
}

static wb_status no_memory(const yaml *y) {
    return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for the tree of %zu bytes", y->path, y->size);
}

/* ---- characters ---------------------------------------------------------------------------------- */

static char peek(const yaml *y) {
    return y->pos < y->size ? y->text[y->pos] : '\0';
}

static bool at_end_of_line(const yaml *y) {
    return y->pos == y->size || y->text[y->pos] == '\n';
}

static void skip_blanks(yaml *y) {
    while (y->pos < y->size && (peek(y) == ' ' || peek(y) == '\r')) y->pos++;
}

/* To the end of the line, over blanks and a comment. */
static wb_status end_line(yaml *y) {
    skip_blanks(y);
    if (peek(y) == '#')
        while (!at_end_of_line(y)) y->pos++;
    if (!at_end_of_line(y)) return refuse(y, "the end of the line");
    return WB_OK;
}

/* To the first character of the next line that has something; its indentation. At the end -1. */
static wb_status next_line(yaml *y, int *indent_out) {
    for (;;) {
        const size_t begin = y->pos;
        skip_blanks(y);
        *indent_out = y->pos - begin < 1024 ? (int)(y->pos - begin) : 1024;
        if (y->pos == y->size) {
            *indent_out = -1;
            return WB_OK;
        }
        const bool separator =
            y->pos == begin && y->size - y->pos >= 3 && memcmp(y->text + y->pos, "---", 3) == 0;
        if (separator) y->pos += 3;
        if (!separator && peek(y) != '#' && peek(y) != '\n') return WB_OK;
        WB_TRY(end_line(y));
        if (y->pos == y->size) continue;
        y->pos++;
        y->line++;
    }
}

/* Blanks, line ends and comments inside brackets. */
static wb_status skip_inside(yaml *y) {
    for (;;) {
        skip_blanks(y);
        if (peek(y) == '#') WB_TRY(end_line(y));
        if (y->pos == y->size) return refuse(y, "a ]");
        if (peek(y) != '\n') return WB_OK;
        y->pos++;
        y->line++;
    }
}

/* ---- values -------------------------------------------------------------------------------------- */

static wb_status give(const yaml *y, json_t *value, json_t **value_out) {
    if (!value) return no_memory(y);
    *value_out = value;
    return WB_OK;
}

static wb_status read_number(yaml *y, json_t **value_out) {
    char digits[24];
    size_t n = 0;
    char *end = NULL;
    while (n < sizeof digits - 1 && y->pos + n < y->size &&
           (isdigit((unsigned char)y->text[y->pos + n]) || y->text[y->pos + n] == '-'))
        n++;
    memcpy(digits, y->text + y->pos, n);
    digits[n] = '\0';
    errno = 0;
    const long long value = strtoll(digits, &end, 10);
    if (n == 0 || *end != '\0' || errno == ERANGE) return refuse(y, "a whole number");
    y->pos += n;
    return give(y, json_integer(value), value_out);
}

/* "[1, 2, 3]", over as many lines as it takes; the bracket is next. */
static wb_status fill_flow(yaml *y, json_t *list) {
    y->pos++;
    WB_TRY(skip_inside(y));
    while (peek(y) != ']') {
        json_t *item = NULL;
        WB_TRY(read_number(y, &item));
        if (json_array_append_new(list, item) != 0) return no_memory(y);
        WB_TRY(skip_inside(y));
        if (peek(y) == ',') {
            y->pos++;
            WB_TRY(skip_inside(y));
        } else if (peek(y) != ']') {
            return refuse(y, "a comma or ]");
        }
    }
    y->pos++;
    return end_line(y);
}

/* Lines "- 7" at this indentation; the first is next. */
static wb_status fill_dashes(yaml *y, int indent, json_t *list) {
    int found = indent;
    while (found == indent && peek(y) == '-') {
        json_t *item = NULL;
        y->pos++;
        if (peek(y) != ' ') return refuse(y, "a blank after -");
        skip_blanks(y);
        WB_TRY(read_number(y, &item));
        if (json_array_append_new(list, item) != 0) return no_memory(y);
        WB_TRY(end_line(y));
        WB_TRY(next_line(y, &found));
    }
    return WB_OK;
}

/* A list by one of the two, kept only when it is whole. */
static wb_status read_list(yaml *y, int indent, json_t **value_out) {
    json_t *list = json_array();
    if (!list) return no_memory(y);
    const wb_status status = peek(y) == '[' ? fill_flow(y, list) : fill_dashes(y, indent, list);
    if (status == WB_OK)
        *value_out = list;
    else
        json_decref(list);
    return status;
}

/* What stands behind a key on its line and is neither a list nor a number: kept as text, which no map is. */
static wb_status read_text(yaml *y, json_t **value_out) {
    const size_t begin = y->pos;
    if (strchr("{&*!|>\"'", peek(y))) return refuse(y, "a number, a list or plain text");
    while (!at_end_of_line(y) && peek(y) != '#') y->pos++;
    if (!wb_text_ok(y->text + begin, y->pos - begin)) return refuse(y, "UTF-8 without NUL");
    return give(y, json_stringn_nocheck(y->text + begin, y->pos - begin), value_out);
}

/* ---- maps ---------------------------------------------------------------------------------------- */

static wb_status read_map(yaml *y, int indent, unsigned depth, json_t **map_out);

/* A value on the lines after its key's, of which the first is next, at indentation `found`: a list with
 * dashes, keys that are deeper indented, or nothing. */
static wb_status read_nested(yaml *y, int indent, int found, unsigned depth, json_t **value_out,
                             int *next_out) {
    if (found >= indent && peek(y) == '-')
        WB_TRY(read_list(y, found, value_out));
    else if (found > indent)
        WB_TRY(read_map(y, found, depth + 1, value_out));
    else
        WB_TRY(give(y, json_null(), value_out));
    /* Who read the value has found the line after it, where the position is now. */
    size_t begin = y->pos;
    while (begin > 0 && y->text[begin - 1] != '\n') begin--;
    *next_out = y->pos == y->size ? -1 : (int)(y->pos - begin);
    return WB_OK;
}

/* The value of a key in a line of this indentation, behind the colon; *next_out: the indentation of the
 * line after it, which is next. */
static wb_status read_value(yaml *y, int indent, unsigned depth, json_t **value_out, int *next_out) {
    skip_blanks(y);
    if (at_end_of_line(y) || peek(y) == '#') {
        int found = 0;
        WB_TRY(end_line(y));
        WB_TRY(next_line(y, &found));
        if (found <= indent || peek(y) != '[')
            return read_nested(y, indent, found, depth, value_out, next_out);
    }
    const bool number = isdigit((unsigned char)peek(y)) || peek(y) == '-';
    WB_TRY(peek(y) == '[' ? read_list(y, indent, value_out)
           : number       ? read_number(y, value_out)
                          : read_text(y, value_out));
    wb_status status = end_line(y);
    if (status == WB_OK) status = next_line(y, next_out);
    if (status != WB_OK) json_decref(*value_out);
    return status;
}

/* A key up to its colon, in quotes or plain. */
static wb_status read_key(yaml *y, char *key_out, size_t room) {
    const char quote = peek(y) == '"' || peek(y) == '\'' ? peek(y) : '\0';
    size_t n = 0;
    y->pos += quote != '\0';
    for (; !at_end_of_line(y) && (isalnum((unsigned char)peek(y)) || memchr("_-.", peek(y), 3)); y->pos++) {
        if (n + 1 == room) return refuse(y, "a shorter key");
        key_out[n++] = peek(y);
    }
    key_out[n] = '\0';
    if (quote && peek(y) != quote) return refuse(y, "a key in quotes");
    y->pos += quote != '\0';
    if (n == 0 || peek(y) != ':') return refuse(y, "a key and a colon");
    y->pos++;
    if (!at_end_of_line(y) && peek(y) != ' ' && peek(y) != '\r') return refuse(y, "a blank after the colon");
    return WB_OK;
}

static wb_status fill_map(yaml *y, int indent, unsigned depth, json_t *map) {
    int found = indent;
    while (found == indent) {
        char key[64];
        json_t *value = NULL;
        WB_TRY(read_key(y, key, sizeof key));
        if (json_object_get(map, key)) return refuse(y, "each key once");
        WB_TRY(read_value(y, indent, depth, &value, &found));
        if (json_object_set_new(map, key, value) != 0) return no_memory(y);
    }
    return found > indent ? refuse(y, "the indentation of the keys above") : WB_OK;
}

/* Keys at this indentation; the first is next. */
static wb_status read_map(yaml *y, int indent, unsigned depth, json_t **map_out) {
    if (depth > WB_SCAN_MAX_DEPTH) return refuse(y, "fewer maps inside each other");
    json_t *map = json_object();
    if (!map) return no_memory(y);
    const wb_status status = fill_map(y, indent, depth, map);
    if (status == WB_OK)
        *map_out = map;
    else
        json_decref(map);
    return status;
}

/* ---- the file ------------------------------------------------------------------------------------ */

bool wb_yaml_is(const uint8_t *bytes, size_t size) {
    return size > 0 && (isalpha(bytes[0]) || bytes[0] == '#' || bytes[0] == '-' || bytes[0] == '"');
}

wb_status wb_yaml_parse(const char *path, const uint8_t *bytes, size_t size, json_t **root_out) {
    yaml y = {.path = path, .text = (const char *)bytes, .size = size, .line = 1};
    json_t *root = NULL;
    int indent = 0;
    WB_TRY(next_line(&y, &indent));
    if (indent < 0) return refuse(&y, "a map");
    WB_TRY(read_map(&y, indent, 1, &root));
    if (y.pos == y.size) {
        *root_out = root;
        return WB_OK;
    }
    json_decref(root);
    return refuse(&y, "the indentation of the first key");
}
