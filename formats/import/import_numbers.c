/* import_numbers.c - see import_numbers.h. */
#include "import/import_numbers.h"
#include "wb_check.h"

#include <inttypes.h>

import_value wb_import_number(const import_value *numbers, size_t i) {
    if (numbers->kind != IMPORT_ARRAY) return wb_import_at(numbers, i);
    import_array one = wb_import_part(&numbers->array, i);
    return one.n_dims == 0 ? wb_import_of_array(&one) : (import_value){.kind = IMPORT_OTHER};
}

wb_status wb_import_u32(const import_value *numbers, const char *what, wb_owner *owner,
                        uint32_t **numbers_out) {
    uint32_t *out = NULL;
    WB_TRY(WB_OWN(owner, out, numbers->length, what));
    for (size_t i = 0; i < numbers->length; i++) {
        const import_value v = wb_import_number(numbers, i);
        if (v.kind != IMPORT_INTEGER)
            return wb_fail(WB_CORRUPT, "%s[%zu]: expected an integer, found %s", what, i,
                           wb_import_kind_name(v.kind));
        if (v.integer < 0 || v.integer > UINT32_MAX)
            return wb_fail(WB_CORRUPT, "%s[%zu]: expected 0..%" PRIu32 ", found %" PRId64, what, i,
                           UINT32_MAX, v.integer);
        out[i] = (uint32_t)v.integer;
    }
    *numbers_out = out;
    return WB_OK;
}
