/* yaml_file.h - the part of YAML that maps of experts come in: maps with plain keys by indentation, lists
 * of numbers in brackets or with dashes, plain scalars, comments. Refuses: everything else, by its line
 * (anchors, tags, flow maps, texts of several lines). */
#ifndef WB_YAML_FILE_H
#define WB_YAML_FILE_H

#include "files/offline/tree_file.h"

/* Whether the bytes begin as such a file does and as neither JSON nor msgpack nor a torch file do. */
bool wb_yaml_is(const uint8_t *bytes, size_t size);

/* The tree of the bytes; keys are texts, as in JSON. CORRUPT, naming path and line. */
wb_status wb_yaml_parse(const char *path, const uint8_t *bytes, size_t size, json_t **root_out);

#endif
