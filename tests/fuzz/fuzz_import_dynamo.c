/* fuzz_import_dynamo.c - any bytes as answers of this layout; see import_fuzz.h. */
#define LAYOUT WB_IMPORT_DYNAMO
#include "fuzz/import_fuzz.h"
