/* torch_values.h - what a pickle of tensors may name, and what is made of it. Refuses: every other name. */
#ifndef WB_TORCH_VALUES_H
#define WB_TORCH_VALUES_H

#include "files/offline/torch_pickle.h"

/* `pos` is the byte that messages name. */

/* The number of a name that is known; UNSUPPORTED, naming it, for every other one. */
wb_status wb_pickle_global(size_t pos, const char *module, size_t module_bytes, const char *name,
                           size_t name_bytes, int64_t *global_out);

/* A storage from the tuple that is its persistent id: ("storage", type, key, device, elements). */
wb_status wb_pickle_storage(wb_pickle *pickle, size_t pos, wb_pickle_id arguments, wb_pickle_value *made_out);

/* What the global `callable` makes of a tuple: an empty dict, or a tensor. */
wb_status wb_pickle_call(wb_pickle *pickle, size_t pos, wb_pickle_id callable, wb_pickle_id arguments,
                         wb_pickle_value *made_out);

#endif
