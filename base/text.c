/* text.c - see wb_text.h. Refuses: files, encodings other than UTF-8. */
#include "wb_check.h"
#include "wb_memory.h"
#include "wb_text.h"

#include <stdarg.h>
#include <stdio.h>

/* Bytes of the UTF-8 character at `s`, 0 when it is none (overlong forms and surrogates are none). */
static size_t utf8_length(const uint8_t *s, size_t left) {
    if (s[0] < 0x80) return 1;
    size_t n = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || n > left) return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if (s[0] == 0xe0 && s[1] < 0xa0) return 0;
    if (s[0] == 0xed && s[1] > 0x9f) return 0;
    if (s[0] == 0xf0 && s[1] < 0x90) return 0;
    if (s[0] == 0xf4 && s[1] > 0x8f) return 0;
    return n;
}

bool wb_text_ok(const char *text, size_t length) {
    const uint8_t *s = (const uint8_t *)text;
    for (size_t i = 0, n; i < length; i += n) {
        n = utf8_length(s + i, length - i);
        if (n == 0 || s[i] == 0) return false;
    }
    return true;
}

wb_status wb_text_format(char **text_out, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (length < 0) return wb_fail(WB_INVALID_ARGUMENT, "text: cannot be formatted");
    char *text = NULL;
    WB_TRY(WB_NEW(text, (size_t)length + 1, "text"));
    va_start(args, format);
    vsnprintf(text, (size_t)length + 1, format, args);
    va_end(args);
    *text_out = text;
    return WB_OK;
}
