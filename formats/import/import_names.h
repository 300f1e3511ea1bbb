/* import_names.h - the names under which systems write the fields that more than one file asks for
 * (internal); each list ends with NULL, and what stands first is looked for first. */
#ifndef WB_IMPORT_NAMES_H
#define WB_IMPORT_NAMES_H

extern const char *const wb_import_route_names[];
extern const char *const wb_import_prompt_route_names[];
extern const char *const wb_import_prompt_names[]; /* tokens of the prompt */
extern const char *const wb_import_output_names[]; /* new tokens */
extern const char *const wb_import_finish_names[];

#endif
