/* fuzz_import_vllm.c - any bytes as answers of this layout; see import_fuzz.h. */
#define LAYOUT WB_IMPORT_VLLM
#include "fuzz/import_fuzz.h"
