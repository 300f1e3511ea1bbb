/* wb_check.h - the three check macros of every room (not installed).
 * WB_TRY returns the failure, WB_GOTO jumps to a label that unwinds, WB_IGNORE is for teardown. */
#ifndef WB_CHECK_H
#define WB_CHECK_H

#include "wb_base.h"

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

#endif
