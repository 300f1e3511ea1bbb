/* cuda_graph.cu - what ops put on the stream of a device, captured as a graph. Refuses: which ops (the
 * caller), copies between host and device (wb_device.h). */
#include "cuda/cuda_operands.h"

extern "C" {

/* Calls of other threads are none of this capture's. */
wb_status wb_cuda_graph_begin(wb_device *dev) {
    WB_TRY(wb_cuda_use(dev, "graph_begin"));
    return wb_cuda_check(cudaStreamBeginCapture(stream_of(dev), cudaStreamCaptureModeThreadLocal),
                         "graph_begin");
}

wb_status wb_cuda_graph_end(wb_device *dev, void **graph_out) {
    cudaGraph_t captured = NULL;
    cudaGraphExec_t graph = NULL;
    WB_TRY(wb_cuda_use(dev, "graph_end"));
    const cudaError_t ended = cudaStreamEndCapture(stream_of(dev), &captured);
    wb_status status = wb_cuda_check(ended, "graph_end: capture");
    if (status == WB_OK) status = wb_cuda_check(cudaGraphInstantiate(&graph, captured, 0), "graph_end");
    if (captured) WB_IGNORE(wb_cuda_check(cudaGraphDestroy(captured), "graph_end"));
    if (status == WB_OK) *graph_out = graph;
    return status;
}

wb_status wb_cuda_graph_launch(wb_device *dev, void *graph) {
    WB_TRY(wb_cuda_use(dev, "graph_launch"));
    return wb_cuda_check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream_of(dev)),
                         "graph_launch");
}

void wb_cuda_graph_free(wb_device *dev, void *graph) {
    if (!graph) return;
    WB_IGNORE(wb_cuda_use(dev, "graph_free"));
    WB_IGNORE(wb_cuda_check(cudaStreamSynchronize(stream_of(dev)), "graph_free, or an op before it"));
    WB_IGNORE(wb_cuda_check(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)), "graph_free"));
}
}
