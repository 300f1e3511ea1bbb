/* fuzz_import_nemo_rl.c - any bytes as answers of this layout; see import_fuzz.h. */
#define LAYOUT WB_IMPORT_NEMO_RL
#include "fuzz/import_fuzz.h"
