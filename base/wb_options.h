/* wb_options.h - options structs that begin with their size (not installed).
 *
 * A caller may have been compiled against an earlier minor version, whose struct was shorter, or a later
 * one. So each options struct begins with `size_t size`, is initialised by
 * wb_<name>_options_init(&options, sizeof options), and is read by copying it over the library's own
 * defaults: what the caller's struct does not have keeps its default. */
#ifndef WB_OPTIONS_H
#define WB_OPTIONS_H

#include "wb_base.h"

/* The body of an initialiser: as much of `defaults`, a struct of own_size bytes, as fits the caller's
 * struct of `size` bytes, whose first field becomes `size`; what lies beyond own_size becomes zero. */
void wb_options_init(void *options_out, size_t size, const void *defaults, size_t own_size);

/* Lays a caller's options over `own`, which holds the defaults and is own_size bytes. NULL leaves the
 * defaults. `what` begins the message of INVALID_ARGUMENT: the struct was not initialised (size 0), or a
 * later version's has a field set that this version does not know. */
wb_status wb_options_read(void *own, size_t own_size, const void *options, const char *what);

#endif
