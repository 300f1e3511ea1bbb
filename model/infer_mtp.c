/* infer_mtp.c - what the workspace of MTP layers has of its own: their input, pools that begin as zeros,
 * their end. Refuses: a step, which is made as any other (infer.c). */
#include "infer_state.h"
#include "layers/mtp.h"

#include <stdlib.h>

/* What was not fed to a layer is finite at least. */
wb_status wb_infer_mtp_zero(const wb_infer *mtp) {
    wb_device *dev = mtp->model->device;
    for (int32_t l = 0; l < mtp->model->config.n_layers; l++)
        for (int32_t i = 0; i < mtp->pools[l].shape.n_tables; i++)
            WB_TRY(dev->zero(dev, mtp->pools[l].tables[i].data, mtp->pools[l].tables[i].bytes));
    return WB_OK;
}

/* The rows are gathered first: the scratch is where the layer's own output was. */
wb_status wb_infer_mtp_input(wb_infer *mtp, int64_t T, wb_rows output, wb_rows x) {
    const wb_model *model = mtp->model;
    wb_device *dev = model->device;
    const wb_rows hidden = wb_activations(model, &mtp->hidden), scratch = wb_activations(model, &mtp->y);
    WB_TRY(
        dev->gather_rows(dev, T, model->config.hidden_size, mtp->inputs.hidden_rows.device, output, hidden));
    return wb_mtp_input(model, 0, T, mtp->inputs.tokens.device, mtp->hidden_of->model, hidden, scratch, x);
}

void wb_infer_mtp_close(wb_infer *mtp) {
    if (!mtp) return;
    wb_infer_graphs_close(&mtp->graphs, mtp->model->device);
    wb_workspace_close(&mtp->memory);
    free(mtp);
}
