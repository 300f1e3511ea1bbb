/* import_text.c - see import_text.h. */
#include "import/import_text.h"
#include "wb_check.h"

#include <string.h>

enum { NO_DIGIT = 255 };

static void fill_digits(uint8_t digits[256], const char *alphabet) {
    memset(digits, NO_DIGIT, 256);
    for (unsigned i = 0; alphabet[i]; i++) digits[(uint8_t)alphabet[i]] = (uint8_t)i;
}

static wb_status not_of_the_alphabet(const char *what, const char *text, size_t at) {
    return wb_fail(WB_CORRUPT, "%s: character %zu is 0x%02x, which is none of its alphabet", what, at,
                   (unsigned)(uint8_t)text[at]);
}

/* ---- base64 --------------------------------------------------------------------------------------- */

static size_t without_padding(const char *text, size_t length) {
    for (int i = 0; i < 2 && length > 0 && text[length - 1] == '='; i++) length--;
    return length;
}

size_t wb_import_base64_bytes(const char *text, size_t length) {
    const size_t digits = without_padding(text, length), rest = digits % 4;
    if (rest == 1 || (digits < length && length % 4 != 0)) return SIZE_MAX;
    return digits / 4 * 3 + (rest ? rest - 1 : 0);
}

wb_status wb_import_base64(const char *text, size_t length, wb_owner *owner, const uint8_t **bytes_out,
                           size_t *size_out) {
    uint8_t digits[256], *bytes = NULL;
    const size_t size = wb_import_base64_bytes(text, length), n = without_padding(text, length);
    fill_digits(digits, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/");
    digits['-'] = 62;
    digits['_'] = 63;
    if (size == SIZE_MAX)
        return wb_fail(WB_CORRUPT, "base64: expected whole groups of 4 characters, found %zu", length);
    WB_TRY(WB_OWN(owner, bytes, size, "base64"));
    uint32_t group = 0;
    for (size_t i = 0, at = 0; i < n; i++) {
        const uint32_t digit = digits[(uint8_t)text[i]];
        if (digit == NO_DIGIT) return not_of_the_alphabet("base64", text, i);
        group = group << 6 | digit;
        if (i % 4 > 0) bytes[at++] = (uint8_t)(group >> (6 - 2 * (i % 4)));
    }
    *bytes_out = bytes;
    *size_out = size;
    return WB_OK;
}

/* ---- base85 --------------------------------------------------------------------------------------- */

size_t wb_import_base85_bytes(size_t length) {
    const size_t rest = length % 5;
    return rest == 1 ? SIZE_MAX : length / 5 * 4 + (rest ? rest - 1 : 0);
}

/* Five digits are four bytes, the highest first; a last group of n + 1 digits is n bytes and is filled up
 * with the highest digit. */
wb_status wb_import_base85(const char *text, size_t length, wb_owner *owner, const uint8_t **bytes_out,
                           size_t *size_out) {
    uint8_t digits[256], *bytes = NULL;
    const size_t size = wb_import_base85_bytes(length);
    fill_digits(digits,
                "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~");
    if (size == SIZE_MAX) return wb_fail(WB_CORRUPT, "base85: no text has %zu characters", length);
    WB_TRY(WB_OWN(owner, bytes, size, "base85"));
    for (size_t i = 0, at = 0; i < length; i += 5) {
        uint64_t group = 0;
        for (size_t k = 0; k < 5; k++) {
            const uint32_t digit = i + k < length ? digits[(uint8_t)text[i + k]] : 84;
            if (digit == NO_DIGIT) return not_of_the_alphabet("base85", text, i + k);
            group = 85 * group + digit;
        }
        if (group > UINT32_MAX)
            return wb_fail(WB_CORRUPT, "base85: the group at character %zu is too large", i);
        for (unsigned k = 0; k < 4 && at < size; k++) bytes[at++] = (uint8_t)(group >> (24 - 8 * k));
    }
    *bytes_out = bytes;
    *size_out = size;
    return WB_OK;
}
