/* device.c - the public calls of a device, and the check that it has the ops that its user needs.
 *
 * Owns: what is the same for every backend. Refuses: opening (cpu/cpu_device.c, cuda/cuda_device.cu), ops.
 */
#include "wb_check.h"
#include "wb_device.h"

#ifndef WB_HAVE_CUDA
wb_status wb_device_open_cuda(int index, void *stream, wb_device **device_out) {
    (void)index, (void)stream, (void)device_out;
    return wb_fail(WB_UNSUPPORTED, "CUDA: Waybill was built without it");
}

int wb_device_count_cuda(void) {
    return 0;
}

size_t wb_scratch_bytes_cuda(const wb_op_sizes *most) {
    (void)most;
    return 0;
}
#endif

void wb_device_close(wb_device *device) {
    if (device) device->close(device);
}

wb_backend wb_device_backend(const wb_device *device) {
    return device->backend;
}

const char *wb_device_name(const wb_device *device) {
    return device->name;
}

wb_status wb_device_alloc(wb_device *device, size_t bytes, void **device_out) {
    return device->mem_alloc(device, bytes, device_out);
}

void wb_device_free(wb_device *device, void *memory) {
    device->mem_free(device, memory);
}

wb_status wb_device_upload(wb_device *device, void *memory, const void *host, size_t bytes) {
    return device->to_device(device, memory, host, bytes);
}

wb_status wb_device_download(wb_device *device, void *host, const void *memory, size_t bytes) {
    return device->to_host(device, host, memory, bytes);
}

/* ---- what a user of a device needs --------------------------------------------------------------- */

const char *wb_op_name(wb_op op) {
#define NAME(op) [WB_OP_##op] = #op,
    static const char *const names[WB_OP_COUNT] = {WB_OPS(NAME)};
#undef NAME
    return names[op];
}

static bool has_op(const wb_device *device, wb_op op) {
    switch (op) {
#define CASE(op)     \
    case WB_OP_##op: \
        return device->op;
        WB_OPS(CASE)
#undef CASE
    case WB_OP_COUNT:
        break;
    }
    return false;
}

wb_status wb_device_require(const wb_device *device, const char *who, const wb_op *needed, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!has_op(device, needed[i]))
            return wb_fail(WB_UNSUPPORTED, "%s: device %s: expected the op %s, found none", who, device->name,
                           wb_op_name(needed[i]));
    return WB_OK;
}
