/* options.c - see wb_options.h. Refuses: what the options mean. */
#include "wb_check.h"
#include "wb_options.h"

#include <string.h>

/* A later version's struct is longer, but not by this much: a size beyond it was never set. */
enum { MAX_LATER_BYTES = 4096 };

void wb_options_init(void *options_out, size_t size, const void *defaults, size_t own_size) {
    if (!options_out) return;
    memset(options_out, 0, size);
    memcpy(options_out, defaults, size < own_size ? size : own_size);
    memcpy(options_out, &size, sizeof size);
}

wb_status wb_options_read(void *own, size_t own_size, const void *options, const char *what) {
    if (!options) return WB_OK;
    size_t size;
    memcpy(&size, options, sizeof size);
    if (size < sizeof size || size > own_size + MAX_LATER_BYTES)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s: options of %zu bytes: expected them to come from the initialiser", what, size);
    for (size_t i = own_size; i < size; i++)
        if (((const unsigned char *)options)[i] != 0)
            return wb_fail(
                WB_INVALID_ARGUMENT,
                "%s: byte %zu of the options is set, this version knows %zu bytes: expected a later library",
                what, i, own_size);
    memcpy(own, options, size < own_size ? size : own_size);
    memcpy(own, &own_size, sizeof own_size);
    return WB_OK;
}

wb_status wb_options_check_reserved(const void *reserved, size_t bytes, const char *what) {
    for (size_t i = 0; i < bytes; i++)
        if (((const unsigned char *)reserved)[i] != 0)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "%s: reserved[%zu]: expected 0, found %d (set for a later library?)", what, i,
                           ((const unsigned char *)reserved)[i]);
    return WB_OK;
}
