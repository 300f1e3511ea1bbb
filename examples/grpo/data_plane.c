/* data_plane.c - how ranks on GPUs exchange rows, gradients and weights: by NCCL where each has a GPU of its
 * own, else over MPI, through host memory. Refuses: which GPU a rank takes (main.c). */
#include "grpo.h"

#ifdef WB_HAVE_NCCL
#include "wb_comm_nccl.h"
#else
static wb_status wb_comm_open_nccl(wb_comm *control, int gpu, bool check_sizes, wb_comm **comm_out) {
    (void)control, (void)gpu, (void)check_sizes, (void)comm_out;
    return wb_fail(WB_UNSUPPORTED, "this program was built without NCCL");
}
#endif

wb_status data_plane_open(wb_backend backend, int gpu, wb_comm *control, wb_comm **comm_out) {
    const bool speaks = wb_comm_rank(control) == 0;
    *comm_out = NULL;
    if (backend != WB_BACKEND_CUDA || wb_comm_size(control) == 1) return WB_OK;
    const wb_status status = wb_comm_open_nccl(control, gpu, false, comm_out);
    if (status == WB_OK && speaks)
        fprintf(stderr, "data plane: NCCL, %d ranks with a GPU each\n", wb_comm_size(control));
    if (status != WB_UNSUPPORTED) return status;
    if (speaks) fprintf(stderr, "data plane: MPI, through host memory: %s\n", wb_error_message());
    return WB_OK;
}
