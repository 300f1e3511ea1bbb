/* exchange_memory.c - see exchange_memory.h: each function is an op of the device. */
#include "exchange_memory.h"

static wb_status host_alloc(void *context, size_t bytes, void **host_out) {
    wb_device *dev = context;
    return dev->host_alloc(dev, bytes, host_out);
}

static void host_free(void *context, void *host) {
    wb_device *dev = context;
    dev->host_free(dev, host);
}

static wb_status to_host(void *context, void *host, const void *device, size_t bytes) {
    wb_device *dev = context;
    return dev->to_host(dev, host, device, bytes);
}

static wb_status to_device(void *context, void *device, const void *host, size_t bytes) {
    wb_device *dev = context;
    return dev->to_device(dev, device, host, bytes);
}

static wb_status copy(void *context, void *to, const void *from, size_t bytes) {
    wb_device *dev = context;
    return dev->copy(dev, to, from, bytes);
}

static wb_status add(void *context, size_t n, const float *x, float *y) {
    wb_device *dev = context;
    return dev->add(dev, (int64_t)n, wb_f32_rows(x), wb_f32_rows(y));
}

static void lose(void *context, const char *why) {
    wb_device *dev = context;
    dev->lose(dev, why);
}

wb_exchange_memory wb_device_exchange_memory(wb_device *device) {
    return (wb_exchange_memory){.size = sizeof(wb_exchange_memory),
                                .context = device,
                                .stream = device->stream,
                                .host_access = device->backend == WB_BACKEND_CPU,
                                .host_alloc = host_alloc,
                                .host_free = host_free,
                                .to_host = to_host,
                                .to_device = to_device,
                                .copy = copy,
                                .add = add,
                                .lose = device->lose ? lose : NULL};
}
