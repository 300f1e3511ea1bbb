/* wb_msgpack_scan.h - a cursor over msgpack bytes that trusts nothing (not installed).
 *
 * msgpack-c allocates what a count asks for: the 5 bytes that begin an array of 2^32 - 1 members make it ask
 * for 128 GiB. So bytes from a file pass here first: every count is compared with the bytes left, depth is
 * bounded, nothing is allocated. Strings and bins are pointers into the input. The first failure sticks:
 * later calls return false, 0 or NULL and change nothing. */
#ifndef WB_MSGPACK_SCAN_H
#define WB_MSGPACK_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WB_SCAN_MAX_DEPTH 16

typedef enum wb_scan_error {
    WB_SCAN_OK,
    WB_SCAN_INCOMPLETE, /* the bytes end inside an object: cut, or a count that was damaged */
    WB_SCAN_INVALID     /* not msgpack, deeper than WB_SCAN_MAX_DEPTH, or not the type asked for */
} wb_scan_error;

typedef struct wb_scan {
    const uint8_t *bytes;
    size_t end, pos; /* reads [pos, end) of bytes */
    wb_scan_error error;
    size_t error_pos; /* first byte of the object or part that failed */
    const char *why;  /* "expected a map", a static string */
} wb_scan;

wb_scan wb_scan_range(const void *bytes, size_t begin, size_t end);

/* Steps over one object and all it contains. */
bool wb_scan_skip(wb_scan *scan);

uint32_t wb_scan_map(wb_scan *scan);   /* pairs that follow */
uint32_t wb_scan_array(wb_scan *scan); /* objects that follow */
bool wb_scan_is_array(const wb_scan *scan);
uint64_t wb_scan_uint(wb_scan *scan, uint64_t max);
/* A float 32, a float 64 rounded to f32 that does not overflow it, or an unsigned integer: writers in other
 * languages know one kind of number. */
float wb_scan_float(wb_scan *scan);
const char *wb_scan_str(wb_scan *scan, size_t *length_out); /* not NUL-terminated */
const uint8_t *wb_scan_bin(wb_scan *scan, size_t *length_out);

/* For a caller's own findings: sets the sticky error, at byte `pos`. */
void wb_scan_refuse(wb_scan *scan, size_t pos, const char *why);

#endif
