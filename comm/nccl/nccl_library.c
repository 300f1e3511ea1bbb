/* nccl_library.c - see nccl_library.h. */
#include "nccl_library.h"
#include "wb_check.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The first NCCL whose communicators can be opened without blocking. */
#define MIN_VERSION 21400

static pthread_once_t once = PTHREAD_ONCE_INIT;
static wb_nccl_library library;
static bool loaded;
static char missing[400];

static bool find(void *handle, const char *name, void *pointer_out) {
    void *const found = dlsym(handle, name);
    if (!found) {
        snprintf(missing, sizeof missing, "libnccl.so.2 has no %s", name);
        return false;
    }
    memcpy(pointer_out, &found, sizeof found);
    return true;
}

static void load(void) {
    /* NVLink multicast takes resources of the host's switches, which a job that is aborted can leave taken,
     * for all users of the host; sends and receives have no use for it. NCCL reads this when it starts. */
    setenv("NCCL_NVLS_ENABLE", "0", 0);
    void *const handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        snprintf(missing, sizeof missing, "%s", dlerror());
        return;
    }
#define FIND(name) \
    if (!find(handle, "nccl" #name, &library.name)) return;
    WB_NCCL_FUNCTIONS(FIND)
#undef FIND
    if (library.GetVersion(&library.version) != ncclSuccess || library.version < MIN_VERSION) {
        snprintf(missing, sizeof missing, "libnccl.so.2: expected version %d or later, found %d", MIN_VERSION,
                 library.version);
        return;
    }
    loaded = true;
}

wb_status wb_nccl_load(const wb_nccl_library **library_out) {
    pthread_once(&once, load);
    if (!loaded) return wb_fail(WB_UNSUPPORTED, "NCCL: %s", missing);
    *library_out = &library;
    return WB_OK;
}
