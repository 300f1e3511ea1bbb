/* wb_isa.h - which instruction set of the machine is used (not installed). What gains by wide vectors lies in
 * the folder lanes/ of its room, which is compiled once for each of these, and gives the same from all. */
#ifndef WB_ISA_H
#define WB_ISA_H

/* What CMakeLists.txt compiles for: the compiler's own, x86-64-v3 (AVX2), x86-64-v4 (AVX-512). */
typedef enum wb_isa { WB_ISA_GENERIC, WB_ISA_V3, WB_ISA_V4, WB_ISAS } wb_isa;

/* The largest that this machine has and that was compiled. */
wb_isa wb_isa_of_machine(void);

/* The initialiser of an array [WB_ISAS]: each set's own of what is called `name`_<set>. Where there is one
 * set alone, no other is ever asked for. */
#ifdef WB_LANES_X86
#define WB_ISA_EACH(name) \
    { &name##_generic, &name##_v3, &name##_v4 }
#else
#define WB_ISA_EACH(name) \
    { &name##_generic }
#endif

/* In a file of lanes/: `name` with the suffix of the set that it is compiled for. */
#define WB_ISA_JOIN(a, b) a##_##b
#define WB_ISA_NAME(name, isa) WB_ISA_JOIN(name, isa)
#define WB_LANES(name) WB_ISA_NAME(name, WB_LANES_ISA)

#endif
