/* fuzz_import_sglang.c - any bytes as answers of this layout; see import_fuzz.h. */
#define LAYOUT WB_IMPORT_SGLANG
#include "fuzz/import_fuzz.h"
