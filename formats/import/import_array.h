/* import_array.h - arrays of numbers as other systems write them (internal): the .npy file, raw elements with
 * a type and a shape beside them, nested lists.
 *
 * Owns: element types of any byte order, shapes in C order. Refuses: what the numbers mean; complex numbers,
 * structs and objects as elements. */
#ifndef WB_IMPORT_ARRAY_H
#define WB_IMPORT_ARRAY_H

#include "wb_base.h"
#include "wb_memory.h"

enum { IMPORT_MAX_DIMS = 5 };

typedef struct import_type {
    /* 'i' signed, 'u' unsigned, 'f' real, 'b' true or false, 'S' text in UTF-8, 'U' text of 4 bytes a
     * character, which only the reader of .npy sees; 0: none */
    char kind;
    uint32_t bytes;
    bool big_endian;
} import_type;

/* In C order; owns nothing. */
typedef struct import_array {
    import_type type;
    uint32_t n_dims; /* 0: a single number */
    size_t shape[IMPORT_MAX_DIMS];
    size_t count; /* elements: the product of the shape */
    const uint8_t *data;
} import_array;

/* The type that a name says, as numpy ("<i4", "|u1", "int16") or torch ("torch.int32") writes it. False for
 * any other. */
bool wb_import_type(const char *name, size_t length, import_type *type_out);

/* "int16" into a static string; for messages. */
const char *wb_import_type_name(import_type type);

/* The largest number that the type holds; integers only, at most INT64_MAX. */
int64_t wb_import_type_max(import_type type);

/* Whether the bytes begin as a .npy file does. */
bool wb_import_is_npy(const uint8_t *bytes, size_t size);

/* The array of a whole .npy file. Elements stay where they are, but those in Fortran order, and wide text,
 * which becomes UTF-8, are copied into memory of the owner. CORRUPT: the bytes are none; UNSUPPORTED:
 * another version or type. Messages have no prefix. */
wb_status wb_import_npy(const uint8_t *bytes, size_t size, wb_owner *owner, import_array *array_out);

/* An array of `bytes` in C order. CORRUPT unless the size is that of the shape. */
wb_status wb_import_raw(const uint8_t *bytes, size_t size, import_type type, uint32_t n_dims,
                        const size_t *shape, import_array *array_out);

/* Element i of an array of integers (or of true and false); u64 beyond INT64_MAX is INT64_MAX. */
int64_t wb_import_integer(const import_array *array, size_t i);

/* Element i of any array. */
double wb_import_real(const import_array *array, size_t i);

bool wb_import_has_integers(const import_array *array);

/* Part `i` of the first axis: an array of one dimension less. */
import_array wb_import_part(const import_array *array, size_t i);

/* "[7, 4, 2]" into text_out, for messages. */
enum { IMPORT_SHAPE_TEXT = 128 };
void wb_import_show_shape(const import_array *array, char text_out[IMPORT_SHAPE_TEXT]);

#endif
