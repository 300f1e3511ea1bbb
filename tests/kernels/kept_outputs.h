/* kept_outputs.h - the outputs of ops by name, gathered so that those of two devices can be compared bit for
 * bit. */
#ifndef WB_KEPT_OUTPUTS_H
#define WB_KEPT_OUTPUTS_H

#include "ops_test.h"

enum { MAX_PIECES = 160 };

typedef struct outputs {
    uint8_t *bytes;
    size_t count, room;
    const char *names[MAX_PIECES]; /* of the pieces */
    size_t ends[MAX_PIECES];
    int pieces;
} outputs;

static inline void keep(outputs *o, const void *data, size_t bytes, const char *name) {
    assert_true(o->pieces < MAX_PIECES);
    if (o->count + bytes > o->room) {
        o->room = 2 * (o->count + bytes);
        o->bytes = realloc(o->bytes, o->room);
        assert_non_null(o->bytes);
    }
    memcpy(o->bytes + o->count, data, bytes);
    o->count += bytes;
    o->names[o->pieces] = name;
    o->ends[o->pieces++] = o->count;
}

static inline void keep_floats(outputs *o, float *x, int64_t count, const char *name) {
    keep(o, x, (size_t)count * sizeof(float), name);
    free(x);
}

static inline void assert_same_outputs(const outputs *a, const outputs *b, const char *a_name,
                                       const char *b_name) {
    assert_int_equal(a->count, b->count);
    size_t begin = 0;
    for (int i = 0; i < a->pieces; begin = a->ends[i++])
        if (memcmp(a->bytes + begin, b->bytes + begin, a->ends[i] - begin) != 0)
            fail_msg("%s: bits of %s and %s differ", a->names[i], a_name, b_name);
}

#endif
