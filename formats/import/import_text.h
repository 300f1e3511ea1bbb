/* import_text.h - bytes that were made text: base64 (RFC 4648) and base85 (RFC 1924, which Python's b85encode
 * writes) (internal). Refuses: line breaks inside, and text of any other alphabet. */
#ifndef WB_IMPORT_TEXT_H
#define WB_IMPORT_TEXT_H

#include "wb_base.h"
#include "wb_memory.h"

/* The number of bytes that the text of `length` stands for, SIZE_MAX when no text has that length. Padding is
 * looked at, the alphabet is not. */
size_t wb_import_base64_bytes(const char *text, size_t length);
size_t wb_import_base85_bytes(size_t length);

/* The bytes, in memory of the owner. CORRUPT, with the place of the first character that is none of the
 * alphabet; messages have no prefix. base64 takes the alphabet for URLs too, and text without padding. */
wb_status wb_import_base64(const char *text, size_t length, wb_owner *owner, const uint8_t **bytes_out,
                           size_t *size_out);
wb_status wb_import_base85(const char *text, size_t length, wb_owner *owner, const uint8_t **bytes_out,
                           size_t *size_out);

#endif
