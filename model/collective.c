/* collective.c - see collective.h. */
#include "collective.h"

wb_status wb_collective_end(const wb_model *model, wb_status status) {
    /* The reason that the others are told is this thread's message, which is of `status`. */
    if (status != WB_OK) wb_comm_abort(model->comm);
    return status;
}
