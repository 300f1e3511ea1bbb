/* wb_options.h - options structs that begin with their size (not installed).
 *
 * A caller may have been compiled against an earlier minor version, whose struct was shorter, or a later
 * one. So each options struct begins with `size_t size`, is initialised by
 * wb_<name>_options_init(&options, sizeof options), and is read by copying it over the library's own
 * defaults: what the caller's struct does not have keeps its default.
 *
 * The size tells versions apart only if each new field makes the struct longer. So no struct ends in padding,
 * into which a field could be appended without a trace: what the alignment leaves over is a field `reserved`
 * of bytes that are zero, and a WB_OPTIONS_END stands beside the defaults. A later version may give reserved
 * bytes a meaning, since this one refuses them when they are set. Structs that an options struct has by value
 * (wb_router, wb_cost_model) never change. */
#ifndef WB_OPTIONS_H
#define WB_OPTIONS_H

#include "wb_base.h"

/* The body of an initialiser: as much of `defaults`, a struct of own_size bytes, as fits the caller's
 * struct of `size` bytes, whose first field becomes `size`; what lies beyond own_size becomes zero. NULL is
 * a no-op. */
void wb_options_init(void *options_out, size_t size, const void *defaults, size_t own_size);

/* Lays a caller's options over `own`, which holds the defaults and is own_size bytes. NULL leaves the
 * defaults. `what` begins the message of INVALID_ARGUMENT: the struct was not initialised (size 0), or a
 * later version's has a field set that this version does not know. */
wb_status wb_options_read(void *own, size_t own_size, const void *options, const char *what);

/* INVALID_ARGUMENT unless the struct's reserved bytes are zero. */
wb_status wb_options_check_reserved(const void *reserved, size_t bytes, const char *what);

/* `type` ends where its last field does. */
#define WB_OPTIONS_END(type, last)                                                   \
    _Static_assert(offsetof(type, last) + sizeof(((type *)0)->last) == sizeof(type), \
                   #type " ends in padding: expected a field `reserved`")

#endif
