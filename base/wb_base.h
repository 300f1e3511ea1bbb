/* wb_base.h - what every public header of Waybill begins with: status codes, the thread's message, element
 * types, directions of rows.
 *
 * Owns: WB_API, wb_status, messages, wb_dtype, wb_row_direction, the version. Refuses: any state that is not
 * the thread's own.
 *
 * Letters for dimensions, everywhere in Waybill: T tokens, E experts, K choices of a token (top-k), L MoE
 * layers, R ranks, N nodes, S physical slots, M micro-batches, H hidden width, F expert width.
 *
 * Errors: a call that can fail returns wb_status, 0 being ok. Outputs come last, are named *_out and are
 * written only on success. wb_error_message() then says what, where, and what was expected. Threads:
 * different handles may be used from different threads; one handle from one thread at a time.
 */
#ifndef WB_BASE_H
#define WB_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define WB_API __attribute__((visibility("default")))
#define WB_PRINTF(fmt_index, first_arg) __attribute__((format(printf, fmt_index, first_arg)))
#else
#define WB_API
#define WB_PRINTF(fmt_index, first_arg)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status ------------------------------------------------------------------------------------ */

/* X(name, value, meaning) */
#define WB_STATUS_LIST(X)                      \
    X(OK, 0, "ok")                             \
    X(INVALID_ARGUMENT, 1, "invalid argument") \
    X(OUT_OF_MEMORY, 2, "out of memory")       \
    X(IO, 3, "input/output error")             \
    X(CORRUPT, 4, "corrupt data")              \
    X(UNSUPPORTED, 5, "not supported")         \
    X(NOT_FOUND, 6, "not found")               \
    X(MISMATCH, 7, "mismatch")                 \
    X(MISSING_ROUTES, 8, "routes missing")     \
    X(CAPACITY, 9, "capacity exceeded")        \
    X(PEER, 10, "peer failed or disagrees")    \
    X(DEVICE, 11, "device error")

typedef enum wb_status {
#define X(name, value, meaning) WB_##name = value,
    WB_STATUS_LIST(X)
#undef X
} wb_status;

/* The meaning of a status, a static string; "unknown status" for any other value. */
WB_API const char *wb_status_string(wb_status status);

/* The message of this thread's latest failure: what, where, expected against found. Owned by the thread,
 * valid until its next failure; "" when nothing has failed yet. */
WB_API const char *wb_error_message(void);

/* Records a message for this thread and returns `status`, so that a caller writes
 * `return wb_fail(WB_IO, "%s: ...", path)`. Messages over 1023 bytes are cut. */
WB_API wb_status wb_fail(wb_status status, const char *format, ...) WB_PRINTF(2, 3);

/* Puts "<context>: " before this thread's message and returns `status` unchanged. */
WB_API wb_status wb_fail_context(wb_status status, const char *format, ...) WB_PRINTF(2, 3);

WB_API const char *wb_version(void); /* "major.minor.patch", a static string */

/* ---- element types ------------------------------------------------------------------------------ */

/* In files only, and widened there: F8_E4M3, a sign, 4 bits of exponent and 3 of fraction, no infinity;
 * F8_E8M0, a power of two, whose exponent it is; I8, of which each byte holds two numbers of 4 bits. */
typedef enum wb_dtype {
    WB_U8,
    WB_U16,
    WB_I32,
    WB_I64,
    WB_F32,
    WB_BF16,
    WB_F16,
    WB_F8_E4M3,
    WB_F8_E8M0,
    WB_I8
} wb_dtype;

WB_API size_t wb_dtype_size(wb_dtype dtype);      /* bytes of one element */
WB_API const char *wb_dtype_name(wb_dtype dtype); /* "u8", "bf16", ... */

/* ---- rows -------------------------------------------------------------------------------------- */

/* Where the ids of a row of a batch come from, a byte a row in arrays called `direction`, from the plan of a
 * step to the kernels, which keep the ids of every row that is not native. */
typedef enum wb_row_direction {
    WB_ROW_NATIVE = 0, /* chooses by its own logits */
    WB_ROW_FORCED = 1, /* goes to the ids that it is given */
    WB_ROW_PADDING = 2 /* goes to the ids that it is given with weight zero; it is no token */
} wb_row_direction;

#ifdef __cplusplus
}
#endif
#endif
