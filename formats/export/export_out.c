/* export_out.c - see export_out.h: bytes, numbers, text. */
#include "export/export_out.h"
#include "wb_check.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

wb_status wb_export_flush(export_out *out) {
    if (out->status == WB_OK && out->used > 0)
        out->status = out->is_zip ? wb_zip_add(&out->zip, out->buffer, out->used)
                                  : out->write(out->ctx, out->buffer, out->used);
    out->used = 0;
    return out->status;
}

void wb_export_bytes(export_out *out, const void *bytes, size_t size) {
    const uint8_t *at = bytes;
    while (size > 0) {
        const size_t room = sizeof out->buffer - out->used, n = size < room ? size : room;
        memcpy(out->buffer + out->used, at, n);
        out->used += n;
        at += n;
        size -= n;
        if (out->used == sizeof out->buffer) wb_export_flush(out);
    }
}

void wb_export_little(export_out *out, uint64_t value, unsigned bytes) {
    uint8_t text[8];
    for (unsigned i = 0; i < bytes; i++) text[i] = (uint8_t)(value >> 8 * i);
    wb_export_bytes(out, text, bytes);
}

void wb_export_print(export_out *out, const char *format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    wb_export_bytes(out, text, n < 0 ? 0 : (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}

void wb_export_text(export_out *out, const char *text) {
    wb_export_bytes(out, "\"", 1);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            wb_export_print(out, "\\%c", *text);
        else if ((unsigned char)*text < 0x20)
            wb_export_print(out, "\\u%04x", (unsigned)*text);
        else
            wb_export_bytes(out, text, 1);
    }
    wb_export_bytes(out, "\"", 1);
}

void wb_export_real(export_out *out, float number) {
    /* With a point it stays a real: "-0" would be read as the integer 0. */
    char text[32];
    snprintf(text, sizeof text, "%.9g", (double)number);
    wb_export_print(out, "%s%s", text, strpbrk(text, ".en") ? "" : ".0");
}

static void emit_group(export_out *out) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *b = out->base64;
    const char text[4] = {digits[b[0] >> 2], digits[(b[0] & 3) << 4 | b[1] >> 4],
                          out->n_base64 > 1 ? digits[(b[1] & 15) << 2 | b[2] >> 6] : '=',
                          out->n_base64 > 2 ? digits[b[2] & 63] : '='};
    wb_export_bytes(out, text, sizeof text);
    memset(out->base64, 0, sizeof out->base64);
    out->n_base64 = 0;
}

void wb_export_base64(export_out *out, const void *bytes, size_t size) {
    const uint8_t *at = bytes;
    for (size_t i = 0; i < size; i++) {
        out->base64[out->n_base64++] = at[i];
        if (out->n_base64 == 3) emit_group(out);
    }
}

void wb_export_base64_end(export_out *out) {
    if (out->n_base64 > 0) emit_group(out);
}

/* ---- numpy ---------------------------------------------------------------------------------------- */

size_t wb_export_head(char *head_out, const char *type, unsigned n_dims, const uint64_t *shape) {
    enum { BEFORE = 10, ALIGN = 64 };
    char *text = head_out + BEFORE;
    const size_t room = EXPORT_HEAD_BYTES - BEFORE;
    size_t n = (size_t)snprintf(text, room, "{'descr': '%s', 'fortran_order': False, 'shape': (", type);
    for (unsigned d = 0; d < n_dims; d++)
        n += (size_t)snprintf(text + n, room - n, "%" PRIu64 ", ", shape[d]);
    n += (size_t)snprintf(text + n, room - n, "), }");
    while ((BEFORE + n + 1) % ALIGN != 0) text[n++] = ' ';
    text[n++] = '\n';
    memcpy(head_out, "\x93NUMPY\x01", 8);
    head_out[8] = (char)(n & 255);
    head_out[9] = (char)(n >> 8);
    return BEFORE + n;
}

void wb_export_begin(export_out *out, const char *name, const char *type, unsigned n_dims,
                     const uint64_t *shape) {
    char head[EXPORT_HEAD_BYTES], file[64];
    snprintf(file, sizeof file, "%s.npy", name);
    if (out->status == WB_OK) out->status = wb_zip_begin(&out->zip, file);
    wb_export_bytes(out, head, wb_export_head(head, type, n_dims, shape));
}

void wb_export_end(export_out *out) {
    wb_export_flush(out);
    if (out->status == WB_OK) out->status = wb_zip_end(&out->zip);
}
