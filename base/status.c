/* status.c - status strings, the thread's error message, element types, the version.
 * Refuses: printing, exiting, any state that is not the thread's own. */
#include "wb_check.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MESSAGE_BYTES 1024

static _Thread_local char thread_message[MESSAGE_BYTES];

const char *wb_status_string(wb_status status) {
    switch (status) {
#define X(name, value, meaning) \
    case WB_##name:             \
        return meaning;
        WB_STATUS_LIST(X)
#undef X
    }
    return "unknown status";
}

const char *wb_error_message(void) {
    return thread_message;
}

/* Arguments may point into the present message, so the new one is built aside. */
wb_status wb_fail(wb_status status, const char *format, ...) {
    char text[MESSAGE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    memcpy(thread_message, text, strlen(text) + 1);
    return status;
}

wb_status wb_fail_context(wb_status status, const char *format, ...) {
    char text[MESSAGE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    strncat(text, ": ", sizeof text - 1 - strlen(text));
    strncat(text, thread_message, sizeof text - 1 - strlen(text));
    memcpy(thread_message, text, strlen(text) + 1);
    return status;
}

const char *wb_version(void) {
    return WB_VERSION_TEXT; /* the build's, typed once in CMakeLists.txt */
}

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {
    [WB_U8] = {"u8", 1},   [WB_U16] = {"u16", 2},         [WB_I32] = {"i32", 4},
    [WB_I64] = {"i64", 8}, [WB_F32] = {"f32", 4},         [WB_BF16] = {"bf16", 2},
    [WB_F16] = {"f16", 2}, [WB_F8_E4M3] = {"f8_e4m3", 1}, [WB_F8_E8M0] = {"f8_e8m0", 1},
    [WB_I8] = {"i8", 1},
};

size_t wb_dtype_size(wb_dtype dtype) {
    return (size_t)dtype < sizeof dtypes / sizeof dtypes[0] ? dtypes[dtype].size : 0;
}

const char *wb_dtype_name(wb_dtype dtype) {
    return (size_t)dtype < sizeof dtypes / sizeof dtypes[0] ? dtypes[dtype].name : "unknown";
}
