/* planted_faults.h - which defect the program has from now on. */
#ifndef WB_PLANTED_FAULTS_H
#define WB_PLANTED_FAULTS_H

#include <stdbool.h>

/* False: there is none of this name. */
bool plant_fault(const char *name);

#endif
