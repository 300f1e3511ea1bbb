/* fuzz_import_trtllm.c - any bytes as answers of this layout; see import_fuzz.h. */
#define LAYOUT WB_IMPORT_TRTLLM
#include "fuzz/import_fuzz.h"
