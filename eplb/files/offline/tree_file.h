/* tree_file.h - one reader and one writer of the small trees that placements and load statistics are kept
 * in: a map with string keys or an array, as JSON, as msgpack, or as the YAML of yaml_file.h. Trees are
 * Jansson's, whatever the file was.
 *
 * Refuses: msgpack bins, extensions, NaN, nesting beyond WB_SCAN_MAX_DEPTH, keys given twice, PyTorch's
 * pickles. */
#ifndef WB_TREE_FILE_H
#define WB_TREE_FILE_H

#include "wb_check.h"

#include <jansson.h>

/* JSON when the first byte that is no space is '{' or '[', YAML when the first byte is a letter, '#', '-'
 * or '"', else msgpack. CORRUPT, naming line or byte, for what is neither or is damaged; UNSUPPORTED for a
 * PyTorch file and beyond 1 GiB; NOT_FOUND and IO as in wb_file_read. Owner of the tree: the caller
 * (json_decref). */
wb_status wb_tree_read(const char *path, json_t **root_out);

/* *.json is JSON text, any other name msgpack. The file appears whole or not at all (wb_new_file): what was
 * there before stays on failure, a symbolic link is followed, a device or pipe is written directly. */
wb_status wb_tree_write(const char *path, const json_t *root);
/* The same as JSON whatever the name, and as YAML unless it is *.json: of maps, arrays of numbers and
 * numbers. */
wb_status wb_tree_write_json(const char *path, const json_t *root);
wb_status wb_tree_write_yaml(const char *path, const json_t *root);

#endif
