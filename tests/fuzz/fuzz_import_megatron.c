/* fuzz_import_megatron.c - any bytes as answers of this layout; see import_fuzz.h. */
#define LAYOUT WB_IMPORT_MEGATRON
#include "fuzz/import_fuzz.h"
