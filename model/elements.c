/* elements.c - see elements.h. Refuses: integers, devices. */
#include "elements.h"
#include "wb_exact_math.h"

#include <string.h>

/* Exact. A subnormal half is a multiple of 2^-24. */
static float f32_from_f16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = (half >> 10) & 0x1fu, fraction = half & 0x3ffu;
    if (exponent == 0) {
        float magnitude = (float)fraction * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    uint32_t wide = exponent == 31 ? 255 : exponent + 127 - 15;
    return wb_bits_float(sign | wide << 23 | fraction << 13);
}

float wb_f32_from_f8_e4m3(uint8_t f8) {
    const uint32_t sign = (uint32_t)(f8 & 0x80u) << 24, exponent = f8 >> 3 & 15u, fraction = f8 & 7u;
    if (exponent == 15 && fraction == 7) return wb_bits_float(sign | 0x7fc00000u);
    if (exponent == 0) {
        const float magnitude = (float)fraction * 0x1p-9f;
        return sign ? -magnitude : magnitude;
    }
    return wb_bits_float(sign | (exponent + 127 - 7) << 23 | fraction << 20);
}

/* 2^-127 is below the normal numbers. */
float wb_f32_from_f8_e8m0(uint8_t f8) {
    if (f8 == 255) return wb_bits_float(0x7fc00000u);
    return f8 == 0 ? 0x1p-127f : wb_bits_float((uint32_t)f8 << 23);
}

static float load(const unsigned char *from, wb_dtype dtype) {
    uint32_t word;
    uint16_t half;
    if (dtype == WB_F32) {
        memcpy(&word, from, sizeof word);
        return wb_bits_float(word);
    }
    memcpy(&half, from, sizeof half);
    return dtype == WB_F16 ? f32_from_f16(half) : wb_bf16_to_f32(half);
}

static void store(float x, unsigned char *to, wb_dtype dtype) {
    if (dtype == WB_F32) {
        memcpy(to, &x, sizeof x);
    } else {
        uint16_t half = wb_f32_to_bf16(x);
        memcpy(to, &half, sizeof half);
    }
}

void wb_convert(int64_t n, const void *from, wb_dtype from_dtype, void *to, wb_dtype to_dtype) {
    size_t from_size = wb_dtype_size(from_dtype), to_size = wb_dtype_size(to_dtype);
    if (from_dtype == to_dtype) {
        memcpy(to, from, (size_t)n * to_size);
        return;
    }
    const unsigned char *read = from;
    unsigned char *write = to;
    for (int64_t i = 0; i < n; i++, read += from_size, write += to_size)
        store(load(read, from_dtype), write, to_dtype);
}
