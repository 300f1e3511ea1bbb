/* fuzz_import_verl.c - any bytes as answers of this layout; see import_fuzz.h. */
#define LAYOUT WB_IMPORT_VERL
#include "fuzz/import_fuzz.h"
