/* torch_pickle.h - the pickle inside of a file of torch.save, as values. A pickle is a program that may call
 * anything; this reader calls nothing. It knows tensors, dicts, lists, tuples, text, numbers, True, False and
 * None, and refuses every other thing that a pickle names, by its name.
 *
 * Memory: a constant times the bytes of the pickle, of which there are at most WB_PICKLE_MAX_BYTES. Depth:
 * values are numbers into arrays and are never walked to their ends, so that neither depth nor a list that
 * holds itself does harm. */
#ifndef WB_TORCH_PICKLE_H
#define WB_TORCH_PICKLE_H

#include "wb_memory.h"

enum { WB_PICKLE_MAX_BYTES = 1 << 20, WB_PICKLE_MAX_DIMS = 3 };

typedef enum wb_pickle_kind {
    WB_PICKLE_NONE,
    WB_PICKLE_BOOL,
    WB_PICKLE_INT,
    WB_PICKLE_FLOAT,
    WB_PICKLE_TEXT,
    WB_PICKLE_TUPLE,
    WB_PICKLE_LIST,
    WB_PICKLE_DICT,
    WB_PICKLE_STORAGE, /* what a tensor's elements lie in */
    WB_PICKLE_TENSOR,
    WB_PICKLE_GLOBAL /* one of the names that are known; of no use but to make the two above */
} wb_pickle_kind;

/* The types of elements, in torch's names of storages. */
#define WB_TORCH_TYPE_LIST(X)   \
    X(BYTE, "ByteStorage", 1)   \
    X(SHORT, "ShortStorage", 2) \
    X(INT, "IntStorage", 4)     \
    X(LONG, "LongStorage", 8) X(FLOAT, "FloatStorage", 4) X(DOUBLE, "DoubleStorage", 8)

typedef enum wb_torch_type {
#define X(VALUE, name, bytes) WB_TORCH_##VALUE,
    WB_TORCH_TYPE_LIST(X)
#undef X
} wb_torch_type;

/* Elements offset + sum of index[d] x stride[d]. Not yet held against the storage's bytes. */
typedef struct wb_torch_tensor {
    wb_torch_type type;
    const char *key; /* of its storage: the name of a member of the archive, not terminated */
    size_t key_bytes;
    uint64_t storage_elements, offset;
    uint32_t n_dims; /* beyond WB_PICKLE_MAX_DIMS the arrays have the first ones only */
    uint64_t shape[WB_PICKLE_MAX_DIMS], stride[WB_PICKLE_MAX_DIMS];
} wb_torch_tensor;

/* A number of a value. */
typedef uint32_t wb_pickle_id;

typedef struct wb_pickle_value {
    wb_pickle_kind kind;
    union {
        int64_t integer; /* BOOL, INT; the number of a GLOBAL */
        double real;
        struct {
            const char *bytes; /* the pickle's, not terminated */
            size_t n;
        } text;
        struct {
            uint32_t n, first, last; /* numbers of items, when n > 0; of a DICT keys and values in turn */
        } items;
        uint32_t tensor; /* STORAGE, TENSOR: a number of a tensor */
    } as;
} wb_pickle_value;

typedef struct wb_pickle_item {
    wb_pickle_id value;
    uint32_t next;
} wb_pickle_item;

/* Borrows the bytes that it was read from. */
typedef struct wb_pickle {
    wb_pickle_value *values;
    wb_pickle_item *items;
    wb_torch_tensor *tensors;
    size_t n_values, n_items, n_tensors, room_values, room_items, room_tensors;
    wb_pickle_id root;
} wb_pickle;

/* UNSUPPORTED, naming it, for anything but what is listed above; CORRUPT, naming the byte, for what is no
 * pickle. */
wb_status wb_pickle_read(const uint8_t *bytes, size_t size, wb_pickle *pickle_out);
void wb_pickle_close(wb_pickle *pickle); /* a zeroed struct is a no-op */

/* The value of a text key in a dict; NULL when there is none. Of a key given twice the last, as in Python. */
const wb_pickle_value *wb_pickle_get(const wb_pickle *pickle, const wb_pickle_value *dict, const char *key);

#endif
