/* fuzz_import_prime_rl.c - any bytes as answers of this layout; see import_fuzz.h. */
#define LAYOUT WB_IMPORT_PRIME_RL
#include "fuzz/import_fuzz.h"
