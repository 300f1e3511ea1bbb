/* nccl_library.h - NCCL's functions, found when they are first needed (internal).
 *
 * Owns: libnccl.so.2, which stays loaded: a program that has it at hand but runs without GPUs neither needs
 * nor loads it. Refuses: what the functions are called for. */
#ifndef WB_NCCL_LIBRARY_H
#define WB_NCCL_LIBRARY_H

#include "wb_base.h"

#include <nccl.h>

// clang-format off: a function a line
#define WB_NCCL_FUNCTIONS(X) \
    X(GetVersion)            \
    X(GetUniqueId)           \
    X(CommInitRankConfig)    \
    X(CommAbort)             \
    X(CommGetAsyncError)     \
    X(GetErrorString)        \
    X(GetLastError)          \
    X(GroupStart)            \
    X(GroupEnd)              \
    X(Send)                  \
    X(Recv)
// clang-format on

typedef struct wb_nccl_library {
#define WB_NCCL_POINTER(name) __typeof__(nccl##name) *name;
    WB_NCCL_FUNCTIONS(WB_NCCL_POINTER)
#undef WB_NCCL_POINTER
    int version; /* ncclGetVersion's, 22809 for 2.28.9 */
} wb_nccl_library;

/* The same for all threads, loaded once. UNSUPPORTED says what was not found. */
wb_status wb_nccl_load(const wb_nccl_library **library_out);

#endif
