/* torch_pickle.c - see torch_pickle.h: a stack machine of the opcodes that torch.save writes, in protocols 2
 * to 5. */
#include "files/offline/torch_pickle.h"
#include "files/offline/torch_values.h"
#include "wb_check.h"

#include <string.h>

#define WHAT "a pickle"
#define MARK UINT32_MAX /* on the stack: where a tuple, a list or pairs begin */

/* Reading. */
typedef struct machine {
    wb_owner memory;
    const uint8_t *bytes;
    size_t size, pos;
    wb_pickle_id *stack; /* [size + 1]: an opcode pushes at most one */
    size_t depth;
    /* [size]: value + 1; 0: not set. Numbers count what was memoized, so that they are below. */
    uint32_t *memo;
    uint32_t memoized;
    wb_pickle *out;
} machine;

static wb_status corrupt(const machine *m, const char *expected) {
    return wb_fail(WB_CORRUPT, "pickle byte %zu: expected %s", m->pos, expected);
}

/* ---- bytes --------------------------------------------------------------------------------------- */

/* The next n bytes; NULL when there are fewer. */
static const uint8_t *take(machine *m, uint64_t n) {
    if (n > m->size - m->pos) return NULL;
    const uint8_t *at = m->bytes + m->pos;
    m->pos += (size_t)n;
    return at;
}

static wb_status take_little(machine *m, unsigned n, uint64_t *value_out) {
    const uint8_t *at = take(m, n);
    if (!at) return corrupt(m, "more bytes");
    uint64_t value = 0;
    while (n-- > 0) value = value << 8 | at[n];
    *value_out = value;
    return WB_OK;
}

/* A line without its end. */
static wb_status take_line(machine *m, const char **text_out, size_t *bytes_out) {
    const uint8_t *at = m->bytes + m->pos, *end = memchr(at, '\n', m->size - m->pos);
    if (!end) return corrupt(m, "the end of a line");
    *text_out = (const char *)at;
    *bytes_out = (size_t)(end - at);
    m->pos += *bytes_out + 1;
    return WB_OK;
}

/* ---- the stack ----------------------------------------------------------------------------------- */

static wb_status push(machine *m, wb_pickle_value value) {
    WB_TRY(WB_GROW(m->out->values, m->out->n_values + 1, &m->out->room_values, WHAT));
    m->out->values[m->out->n_values] = value;
    m->stack[m->depth++] = (wb_pickle_id)m->out->n_values++;
    return WB_OK;
}

static wb_status push_integer(machine *m, wb_pickle_kind kind, int64_t integer) {
    return push(m, (wb_pickle_value){.kind = kind, .as.integer = integer});
}

/* The topmost value, which stays. */
static wb_status top(const machine *m, wb_pickle_id *id_out) {
    if (m->depth == 0 || m->stack[m->depth - 1] == MARK) return corrupt(m, "a value on the stack");
    *id_out = m->stack[m->depth - 1];
    return WB_OK;
}

static wb_status pop(machine *m, wb_pickle_id *id_out) {
    WB_TRY(top(m, id_out));
    m->depth--;
    return WB_OK;
}

/* The first of the values above the topmost mark, or of the n topmost ones: stack[first .. depth). */
static wb_status values_above(const machine *m, bool marked, size_t n, size_t *first_out) {
    size_t first = m->depth;
    while (first > 0 && m->stack[first - 1] != MARK && (marked || m->depth - first < n)) first--;
    if (marked ? first == 0 : m->depth - first < n) return corrupt(m, "a mark, or values, on the stack");
    *first_out = first;
    return WB_OK;
}

/* Puts stack[first .. depth) behind the items of a container, and takes them off with their mark. */
static wb_status move_items(machine *m, bool marked, size_t first, wb_pickle_id container) {
    wb_pickle *p = m->out;
    for (size_t i = first; i < m->depth; i++) {
        wb_pickle_value *value = &p->values[container];
        WB_TRY(WB_GROW(p->items, p->n_items + 1, &p->room_items, WHAT));
        const uint32_t item = (uint32_t)p->n_items++;
        p->items[item] = (wb_pickle_item){.value = m->stack[i]};
        if (value->as.items.n++ == 0)
            value->as.items.first = item;
        else
            p->items[value->as.items.last].next = item;
        value->as.items.last = item;
    }
    m->depth = first - marked;
    return WB_OK;
}

/* ---- opcodes of containers ----------------------------------------------------------------------- */

static wb_status make_tuple(machine *m, bool marked, size_t n) {
    size_t first = 0;
    WB_TRY(values_above(m, marked, n, &first));
    WB_TRY(push(m, (wb_pickle_value){.kind = WB_PICKLE_TUPLE}));
    const wb_pickle_id tuple = m->stack[--m->depth];
    WB_TRY(move_items(m, marked, first, tuple));
    m->stack[m->depth++] = tuple;
    return WB_OK;
}

/* APPEND, APPENDS, SETITEM, SETITEMS: values go into the container below them. */
static wb_status add_items(machine *m, bool marked, wb_pickle_kind kind) {
    const size_t n = kind == WB_PICKLE_DICT ? 2 : 1; /* keys and values */
    size_t first = 0;
    WB_TRY(values_above(m, marked, n, &first));
    if ((m->depth - first) % n != 0) return corrupt(m, "as many values as keys");
    const size_t below = first - marked; /* the container is right below */
    if (below == 0 || m->stack[below - 1] == MARK || m->out->values[m->stack[below - 1]].kind != kind)
        return corrupt(m, kind == WB_PICKLE_DICT ? "a dict for items" : "a list for items");
    return move_items(m, marked, first, m->stack[below - 1]);
}

/* ---- opcodes of the memo ------------------------------------------------------------------------- */

static wb_status memo_put(machine *m, uint64_t number) {
    wb_pickle_id id = 0;
    WB_TRY(top(m, &id));
    if (number >= m->size) return corrupt(m, "the next number of the memo");
    m->memo[number] = id + 1;
    m->memoized++;
    return WB_OK;
}

static wb_status memo_get(machine *m, uint64_t number) {
    if (number >= m->size || m->memo[number] == 0) return corrupt(m, "a number that the memo has");
    m->stack[m->depth++] = m->memo[number] - 1;
    return WB_OK;
}

/* ---- opcodes of values --------------------------------------------------------------------------- */

static wb_status push_text(machine *m, uint64_t n) {
    const uint8_t *at = take(m, n);
    if (!at) return corrupt(m, "more bytes of text");
    return push(m, (wb_pickle_value){.kind = WB_PICKLE_TEXT, .as.text = {(const char *)at, (size_t)n}});
}

static wb_status push_float(machine *m) {
    uint64_t bits = 0;
    const uint8_t *at = take(m, 8);
    if (!at) return corrupt(m, "8 bytes of a number");
    for (int i = 0; i < 8; i++) bits = bits << 8 | at[i];
    wb_pickle_value value = {.kind = WB_PICKLE_FLOAT};
    memcpy(&value.as.real, &bits, sizeof bits);
    return push(m, value);
}

/* Whole numbers of n bytes, least significant first, the highest bit being the sign. */
static wb_status push_signed(machine *m, uint64_t n) {
    uint64_t value = 0;
    int64_t integer = 0;
    if (n > 8) return wb_fail(WB_UNSUPPORTED, "pickle byte %zu: expected a number of 64 bits", m->pos);
    WB_TRY(take_little(m, (unsigned)n, &value));
    if (n > 0 && n < 8 && value >> (8 * n - 1)) value |= ~UINT64_C(0) << (8 * n);
    memcpy(&integer, &value, sizeof integer);
    return push_integer(m, WB_PICKLE_INT, integer);
}

static wb_status push_name(machine *m, const char *module, size_t module_bytes, const char *name,
                           size_t name_bytes) {
    int64_t global = 0;
    WB_TRY(wb_pickle_global(m->pos, module, module_bytes, name, name_bytes, &global));
    return push_integer(m, WB_PICKLE_GLOBAL, global);
}

/* GLOBAL: two lines, module and name. */
static wb_status push_global(machine *m) {
    const char *module = NULL, *name = NULL;
    size_t module_bytes = 0, name_bytes = 0;
    WB_TRY(take_line(m, &module, &module_bytes));
    WB_TRY(take_line(m, &name, &name_bytes));
    return push_name(m, module, module_bytes, name, name_bytes);
}

/* STACK_GLOBAL: the same, from two texts on the stack. */
static wb_status push_stacked_global(machine *m) {
    wb_pickle_id name = 0, module = 0;
    WB_TRY(pop(m, &name));
    WB_TRY(pop(m, &module));
    const wb_pickle_value a = m->out->values[module], b = m->out->values[name];
    if (a.kind != WB_PICKLE_TEXT || b.kind != WB_PICKLE_TEXT) return corrupt(m, "the texts of a name");
    return push_name(m, a.as.text.bytes, a.as.text.n, b.as.text.bytes, b.as.text.n);
}

/* REDUCE: what a global makes of a tuple; BINPERSID: a storage, of a tuple. */
static wb_status build(machine *m, bool persistent) {
    wb_pickle_id arguments = 0, callable = 0;
    wb_pickle_value made = {.kind = WB_PICKLE_NONE};
    WB_TRY(pop(m, &arguments));
    if (!persistent) WB_TRY(pop(m, &callable));
    WB_TRY(persistent ? wb_pickle_storage(m->out, m->pos, arguments, &made)
                      : wb_pickle_call(m->out, m->pos, callable, arguments, &made));
    return push(m, made);
}

/* ---- the machine --------------------------------------------------------------------------------- */

/* Opcodes that a number of n bytes follows, which says what is meant. */
static wb_status run_counted(machine *m, uint8_t opcode, unsigned n) {
    uint64_t value = 0;
    WB_TRY(take_little(m, n, &value));
    switch (opcode) {
    case 0x80: /* PROTO */
        return value >= 2 && value <= 5 ? WB_OK : corrupt(m, "protocol 2 to 5");
    case 0x95: /* FRAME: bytes that follow together */
        return value <= m->size - m->pos ? WB_OK : corrupt(m, "a frame within the bytes");
    case 'K': /* BININT1 */
    case 'M': /* BININT2 */
        return push_integer(m, WB_PICKLE_INT, (int64_t)value);
    case 0x8a: /* LONG1 */
        return push_signed(m, value);
    case 'X':  /* BINUNICODE */
    case 0x8c: /* SHORT_BINUNICODE */
        return push_text(m, value);
    case 'q': /* BINPUT */
    case 'r': /* LONG_BINPUT */
        return memo_put(m, value);
    default: /* BINGET, LONG_BINGET */
        return memo_get(m, value);
    }
}

/* Opcodes that are a value themselves; the last two are True and False. */
static const struct {
    uint8_t opcode;
    wb_pickle_value value;
} constants[] = {
    {')', {.kind = WB_PICKLE_TUPLE}},
    {']', {.kind = WB_PICKLE_LIST}},
    {'}', {.kind = WB_PICKLE_DICT}},
    {'N', {.kind = WB_PICKLE_NONE}},
    {0x88, {.kind = WB_PICKLE_BOOL, .as.integer = 1}},
    {0x89, {.kind = WB_PICKLE_BOOL}},
};

/* Opcodes that stand alone. */
static wb_status run_plain(machine *m, uint8_t opcode) {
    for (size_t i = 0; i < sizeof constants / sizeof constants[0]; i++)
        if (constants[i].opcode == opcode) return push(m, constants[i].value);
    switch (opcode) {
    case '(':
        m->stack[m->depth++] = MARK;
        return WB_OK;
    case 'J': /* BININT */
        return push_signed(m, 4);
    case 'G':
        return push_float(m);
    case 't':
        return make_tuple(m, true, 0);
    case 0x85: /* TUPLE1, 2, 3 */
    case 0x86:
    case 0x87:
        return make_tuple(m, false, opcode - 0x84u);
    case 'a': /* APPEND, APPENDS */
    case 'e':
        return add_items(m, opcode == 'e', WB_PICKLE_LIST);
    case 's': /* SETITEM, SETITEMS */
    case 'u':
        return add_items(m, opcode == 'u', WB_PICKLE_DICT);
    case 0x94: /* MEMOIZE */
        return memo_put(m, m->memoized);
    case 'c': /* GLOBAL */
        return push_global(m);
    case 0x93: /* STACK_GLOBAL */
        return push_stacked_global(m);
    case 'R': /* REDUCE */
    case 'Q': /* BINPERSID */
        return build(m, opcode == 'Q');
    default:
        return wb_fail(WB_UNSUPPORTED,
                       "pickle byte %zu: expected an opcode of tensors, containers, text and numbers, found "
                       "0x%02x",
                       m->pos - 1, (unsigned)opcode);
    }
}

/* Bytes of the number that follows an opcode; 0: none. */
static unsigned count_bytes(uint8_t opcode) {
    static const uint8_t one[] = {0x80, 'K', 0x8a, 0x8c, 'q', 'h'}, four[] = {'X', 'r', 'j'};
    if (memchr(one, opcode, sizeof one)) return 1;
    if (memchr(four, opcode, sizeof four)) return 4;
    return opcode == 'M' ? 2 : opcode == 0x95 ? 8 : 0;
}

static wb_status run(machine *m) {
    WB_TRY(WB_OWN(&m->memory, m->stack, m->size + 1, WHAT));
    WB_TRY(WB_OWN(&m->memory, m->memo, m->size, WHAT));
    while (m->pos < m->size) {
        const uint8_t opcode = m->bytes[m->pos++];
        const unsigned n = count_bytes(opcode);
        if (opcode != '.') {
            WB_TRY(n ? run_counted(m, opcode, n) : run_plain(m, opcode));
            continue;
        }
        WB_TRY(pop(m, &m->out->root));
        if (m->depth != 0 || m->pos != m->size) return corrupt(m, "the end after one value");
        return WB_OK;
    }
    return corrupt(m, "an opcode that ends it");
}

wb_status wb_pickle_read(const uint8_t *bytes, size_t size, wb_pickle *pickle_out) {
    wb_pickle found = {0};
    machine m = {.bytes = bytes, .size = size, .out = &found};
    if (size > WB_PICKLE_MAX_BYTES)
        return wb_fail(WB_UNSUPPORTED, "pickle: expected at most %d bytes beside the tensors, found %zu",
                       WB_PICKLE_MAX_BYTES, size);
    const wb_status status = run(&m);
    wb_owner_close(&m.memory);
    if (status == WB_OK)
        *pickle_out = found;
    else
        wb_pickle_close(&found);
    return status;
}
