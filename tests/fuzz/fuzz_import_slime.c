/* fuzz_import_slime.c - any bytes as answers of this layout; see import_fuzz.h. */
#define LAYOUT WB_IMPORT_SLIME
#include "fuzz/import_fuzz.h"
