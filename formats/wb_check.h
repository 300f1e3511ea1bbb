/* wb_check.h - the three check macros of every room (internal, not installed).
 * WB_TRY returns the failure, WB_GOTO jumps to a label that unwinds, WB_IGNORE is for teardown. */
#ifndef WB_CHECK_H
#define WB_CHECK_H

#include "wb_formats.h"

#define WB_TRY(call)                                        \
    do {                                                    \
        wb_status wb_try_status_ = (call);                  \
        if (wb_try_status_ != WB_OK) return wb_try_status_; \
    } while (0)

/* Needs a local `wb_status status`. */
#define WB_GOTO(call, label)             \
    do {                                 \
        status = (call);                 \
        if (status != WB_OK) goto label; \
    } while (0)

#define WB_IGNORE(call) ((void)(call))

/* calloc of `count` objects with the overflow check and the message in one place; 0 objects give a
 * valid pointer. Freed with free(). */
wb_status wb_alloc(size_t count, size_t size, const char *what, void **out);

#endif
