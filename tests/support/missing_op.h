/* missing_op.h - devices that lack ops, to see that whoever opens something on one refuses it by the op's
 * name, and calls no op that it has not asked for. */
#ifndef MISSING_OP_H
#define MISSING_OP_H

#include "wb_device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static inline const char *missing_op_name(wb_op op) {
#define NAME(op) #op,
    static const char *const names[] = {WB_OPS(NAME)};
#undef NAME
    return names[op];
}

static inline void missing_op_remove(wb_device *device, wb_op op) {
    switch (op) {
#define CASE(op)           \
    case WB_OP_##op:       \
        device->op = NULL; \
        break;
        WB_OPS(CASE)
#undef CASE
    case WB_OP_COUNT:
        break;
    }
}

/* Opens and closes on a device that lacks one op after the other. needed_out[op]: it was refused, with
 * UNSUPPORTED and a message that begins with `who` and names device and op. */
static inline void missing_op_try_all(wb_device *device, const char *who, wb_status (*open)(void *context),
                                      void *context, bool needed_out[WB_OP_COUNT]) {
    const wb_device whole = *device;
    for (wb_op op = 0; op < WB_OP_COUNT; op++) {
        missing_op_remove(device, op);
        const wb_status status = open(context);
        *device = whole;
        needed_out[op] = status != WB_OK;
        if (status == WB_OK) continue;
        char expected[128];
        snprintf(expected, sizeof expected, "%s: device %s: expected the op %s, found none", who,
                 device->name, missing_op_name(op));
        assert_int_equal(status, WB_UNSUPPORTED);
        assert_string_equal(wb_error_message(), expected);
    }
    assert_int_equal(open(context), WB_OK);
}

/* Takes every op from the device that is not needed: a step on it then shows that the list is complete. */
static inline void missing_op_keep(wb_device *device, const bool needed[WB_OP_COUNT]) {
    for (wb_op op = 0; op < WB_OP_COUNT; op++)
        if (!needed[op]) missing_op_remove(device, op);
}

#endif
