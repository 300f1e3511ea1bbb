/* import_numbers.h - the numbers of a list or an array (internal).
 *
 * Owns: one way to read them, whatever they came in. Refuses: what they are of. */
#ifndef WB_IMPORT_NUMBERS_H
#define WB_IMPORT_NUMBERS_H

#include "import/import_value.h"
#include "wb_memory.h"

/* Number i of a list or an array of numbers, as it was taken by IMPORT_WANT_NUMBERS; kind OTHER: none. */
import_value wb_import_number(const import_value *numbers, size_t i);

/* A list or array of unsigned integers below 2^32, in memory of the owner. CORRUPT names `what` and the
 * first that is none. */
wb_status wb_import_u32(const import_value *numbers, const char *what, wb_owner *owner,
                        uint32_t **numbers_out);

#endif
