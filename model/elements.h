/* elements.h - floating-point elements of a checkpoint to those of a model. */
#ifndef WB_ELEMENTS_H
#define WB_ELEMENTS_H

#include "wb_base.h"

/* to[n] = from[n], host, any alignment, f32, bf16 and f16 in, f32 and bf16 out, to nearest even; NaN stays
 * NaN. */
void wb_convert(int64_t n, const void *from, wb_dtype from_dtype, void *to, wb_dtype to_dtype);

/* Exact: 4 bits of exponent and 3 of mantissa, no infinity; both patterns of all ones are NaN. */
float wb_f32_from_f8_e4m3(uint8_t f8);

/* Exact: 2^(f8 - 127), no sign, no zero; the pattern of all ones is NaN. */
float wb_f32_from_f8_e8m0(uint8_t f8);

#endif
