/* isa.c - see wb_isa.h. */
#include "wb_isa.h"

wb_isa wb_isa_of_machine(void) {
#ifdef WB_LANES_X86
    /* All that CMakeLists.txt compiles v3 for: a hypervisor may hide one and show the others. */
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi") ||
        !__builtin_cpu_supports("bmi2"))
        return WB_ISA_GENERIC;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return WB_ISA_V4;
    return WB_ISA_V3;
#else
    return WB_ISA_GENERIC;
#endif
}
