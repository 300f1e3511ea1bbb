/* wb_text.h - text: the UTF-8 rule, and strings made from a format (not installed). */
#ifndef WB_TEXT_H
#define WB_TEXT_H

#include "wb_base.h"

/* True for UTF-8 without NUL: what every msgpack library gives back as a string, and C too. */
bool wb_text_ok(const char *text, size_t length);

/* A formatted string of its own; freed with free(). */
wb_status wb_text_format(char **text_out, const char *format, ...) WB_PRINTF(2, 3);

#endif
