/* codec.c - see codec.h. */
#include "codec.h"

#include <string.h>
#include <zstd.h>
#include <zstd_errors.h>

#define PLAUSIBLE_RATIO 256

static const char *const codec_names[] = {
    [WB_CODEC_RAW] = "raw", [WB_CODEC_ZSTD] = "zstd", [WB_CODEC_PACKED] = "packed"};
#define N_CODECS (sizeof codec_names / sizeof codec_names[0])

const char *wb_codec_name(wb_codec codec) {
    return (size_t)codec < N_CODECS ? codec_names[codec] : NULL;
}

bool wb_codec_from_name(const char *name, size_t length, wb_codec *codec_out) {
    for (size_t i = 0; i < N_CODECS; i++) {
        if (strlen(codec_names[i]) != length || memcmp(codec_names[i], name, length) != 0) continue;
        *codec_out = (wb_codec)i;
        return true;
    }
    return false;
}

size_t wb_zstd_bound(size_t size) {
    return ZSTD_compressBound(size);
}

bool wb_zstd_plausible(uint64_t decoded, uint64_t stored) {
    return decoded / PLAUSIBLE_RATIO <= stored;
}

bool wb_zstd_claims(const void *src, size_t size, size_t *size_out) {
    unsigned long long n = ZSTD_getFrameContentSize(src, size);
    if (n == ZSTD_CONTENTSIZE_UNKNOWN || n == ZSTD_CONTENTSIZE_ERROR) return false;
    *size_out = (size_t)n;
    return true;
}

static wb_status zstd_fail(const char *what, size_t code) {
    wb_status status =
        ZSTD_getErrorCode(code) == ZSTD_error_memory_allocation ? WB_OUT_OF_MEMORY : WB_CORRUPT;
    return wb_fail(status, "zstd %s: %s", what, ZSTD_getErrorName(code));
}

wb_status wb_zstd_encode(const void *src, size_t size, int level, void *dst, size_t capacity,
                         size_t *size_out) {
    size_t n = ZSTD_compress(dst, capacity, src, size, level);
    if (ZSTD_isError(n)) return zstd_fail("compress", n);
    *size_out = n;
    return WB_OK;
}

wb_status wb_zstd_decode(const void *src, size_t size, void *dst, size_t capacity, size_t *size_out) {
    size_t n = ZSTD_decompress(dst, capacity, src, size);
    if (ZSTD_isError(n)) return zstd_fail("decompress", n);
    *size_out = n;
    return WB_OK;
}
