/* exchange_memory.h - the memory of a device, as the data plane reaches it. Refuses: everything else that a
 * device does. */
#ifndef WB_EXCHANGE_MEMORY_H
#define WB_EXCHANGE_MEMORY_H

#include "wb_device.h"
#include "wb_exchange.h"

/* On the device's stream; the device outlives what is opened with it. The host has access where it is the
 * device. */
wb_exchange_memory wb_device_exchange_memory(wb_device *device);

#endif
