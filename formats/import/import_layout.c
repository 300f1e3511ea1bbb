/* import_layout.c - see import_layout.h and wb_import.h. */
#include "import/import_layout.h"
#include "wb_check.h"

#include <string.h>

static const import_rules table[] = {
    [WB_IMPORT_VLLM] = {.raw = {0}},
    [WB_IMPORT_SGLANG] = {.raw = {'i', 4, false}, .minus_one_is_missing = true},
    [WB_IMPORT_NEMO_RL] = {.minus_one_is_missing = true, .last_row = IMPORT_LAST_MISSING},
    [WB_IMPORT_SLIME] = {.raw = {'i', 4, false}, .minus_one_is_missing = true},
    [WB_IMPORT_VERL] = {.raw = {'i', 4, false},
                        .minus_one_is_missing = true,
                        .zeros_are_missing = true,
                        .is_padded = true,
                        .uid_is_group = true,
                        .last_row = IMPORT_LAST_ZERO},
    [WB_IMPORT_TRTLLM] = {.raw = {'i', 2, false}, .minus_one_is_missing = true},
    [WB_IMPORT_PRIME_RL] = {.raw = {'i', 4, false}, .last_row = IMPORT_LAST_ZERO},
    [WB_IMPORT_MEGATRON] = {.prompt_rows = IMPORT_PROMPT_COPY},
    [WB_IMPORT_DYNAMO] = {.raw = {'i', 4, false}, .minus_one_is_missing = true},
};
enum { N_LAYOUTS = sizeof table / sizeof table[0] };

#define X(NAME, name) +1
_Static_assert(N_LAYOUTS == 0 WB_IMPORT_LIST(X), "each layout of wb_import.h has its line");
#undef X

const import_rules *wb_import_rules(wb_import_layout layout) {
    return (size_t)layout < N_LAYOUTS ? &table[layout] : NULL;
}

#define X(NAME, name) name,
static const char *const names[] = {WB_IMPORT_LIST(X)};
#undef X

const char *wb_import_layout_name(wb_import_layout layout) {
    return (size_t)layout < N_LAYOUTS ? names[layout] : "unknown";
}

#define X(NAME, name) " " name
wb_status wb_import_layout_find(const char *name, wb_import_layout *layout_out) {
    for (size_t i = 0; i < N_LAYOUTS; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *layout_out = (wb_import_layout)i;
        return WB_OK;
    }
    return wb_fail(WB_INVALID_ARGUMENT, "layout: expected one of" WB_IMPORT_LIST(X) ", found %s", name);
}
#undef X
