/* event_file.c - TensorBoard's file of events, written: each event a protocol buffer of tensorflow.Event, in
 * the frames of a TFRecord file (length, its checksum, the event, its checksum; all little endian). Refuses:
 * everything but numbers that have a tag and a step. */
#include "metrics.h"
#include "wb_file.h"
#include "wb_memory.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct byte_string {
    uint8_t *data;
    size_t n, capacity;
} byte_string;

struct event_file {
    FILE *file;
    char path[PATH_BYTES];
    byte_string summary, event; /* of the step at hand */
};

/* ---- checksums ------------------------------------------------------------------------------- */

/* CRC-32C (Castagnoli), reflected. */
static uint32_t crc32c(const uint8_t *data, size_t n) {
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < n; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? UINT32_C(0x82f63b78) : 0);
    }
    return ~crc;
}

/* The format masks a checksum, since one of bytes that have checksums in them is weak. */
static uint32_t masked_crc32c(const uint8_t *data, size_t n) {
    const uint32_t crc = crc32c(data, n);
    return (crc >> 15 | crc << 17) + UINT32_C(0xa282ead8);
}

/* ---- protocol buffers ------------------------------------------------------------------------ */

/* The wire types of what is written here. */
enum { VARINT = 0, FIXED64 = 1, LENGTH = 2, FIXED32 = 5 };

static wb_status put(byte_string *b, const void *data, size_t n) {
    WB_TRY(WB_GROW(b->data, b->n + n, &b->capacity, "an event of TensorBoard"));
    memcpy(b->data + b->n, data, n);
    b->n += n;
    return WB_OK;
}

static void little_endian(uint64_t value, uint8_t *out, int n) {
    for (int i = 0; i < n; i++) out[i] = (uint8_t)(value >> 8 * i);
}

static wb_status put_varint(byte_string *b, uint64_t value) {
    uint8_t text[10];
    size_t n = 0;
    for (; value >= 0x80; value >>= 7) text[n++] = (uint8_t)(value | 0x80);
    text[n++] = (uint8_t)value;
    return put(b, text, n);
}

static wb_status put_key(byte_string *b, uint64_t field, uint64_t wire) {
    return put_varint(b, field << 3 | wire);
}

static wb_status put_number(byte_string *b, uint64_t field, uint64_t value) {
    WB_TRY(put_key(b, field, VARINT));
    return put_varint(b, value);
}

static wb_status put_double(byte_string *b, uint64_t field, double value) {
    uint64_t bits;
    uint8_t text[sizeof bits];
    memcpy(&bits, &value, sizeof bits);
    little_endian(bits, text, sizeof text);
    WB_TRY(put_key(b, field, FIXED64));
    return put(b, text, sizeof text);
}

static wb_status put_float(byte_string *b, uint64_t field, float value) {
    uint32_t bits;
    uint8_t text[sizeof bits];
    memcpy(&bits, &value, sizeof bits);
    little_endian(bits, text, sizeof text);
    WB_TRY(put_key(b, field, FIXED32));
    return put(b, text, sizeof text);
}

static wb_status put_bytes(byte_string *b, uint64_t field, const void *data, size_t n) {
    WB_TRY(put_key(b, field, LENGTH));
    WB_TRY(put_varint(b, n));
    return put(b, data, n);
}

/* ---- events ---------------------------------------------------------------------------------- */

/* Fields of tensorflow.Event, Summary, Summary.Value and SessionLog, and the status that is a start. */
enum { EVENT_TIME = 1, EVENT_STEP = 2, EVENT_VERSION = 3, EVENT_SUMMARY = 5, EVENT_SESSION = 7 };
enum { SUMMARY_VALUE = 1, VALUE_TAG = 1, VALUE_NUMBER = 2, SESSION_STATUS = 1, SESSION_START = 1 };

static wb_status begin_event(event_file *f, uint64_t step) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    f->event.n = 0;
    WB_TRY(put_double(&f->event, EVENT_TIME, (double)now.tv_sec + 1e-9 * (double)now.tv_nsec));
    return put_number(&f->event, EVENT_STEP, step);
}

/* A run is watched while it goes, so the frame has to be in the file when a step is done. */
static wb_status write_event(event_file *f) {
    uint8_t head[12], tail[4];
    little_endian(f->event.n, head, 8);
    little_endian(masked_crc32c(head, 8), head + 8, 4);
    little_endian(masked_crc32c(f->event.data, f->event.n), tail, 4);
    if (fwrite(head, sizeof head, 1, f->file) == 1 && fwrite(f->event.data, f->event.n, 1, f->file) == 1 &&
        fwrite(tail, sizeof tail, 1, f->file) == 1 && fflush(f->file) == 0)
        return WB_OK;
    return wb_fail(WB_IO, "%s: cannot be written: %m", f->path);
}

/* What makes a reader take the file for one of events, and drop what earlier files have of first_step and
 * later: a run that resumes does those again. */
static wb_status write_start(event_file *f, uint64_t first_step) {
    static const char version[] = "brain.Event:2";
    const uint8_t start[] = {SESSION_STATUS << 3 | VARINT, SESSION_START};
    WB_TRY(begin_event(f, 0));
    WB_TRY(put_bytes(&f->event, EVENT_VERSION, version, sizeof version - 1));
    WB_TRY(write_event(f));
    WB_TRY(begin_event(f, first_step));
    WB_TRY(put_bytes(&f->event, EVENT_SESSION, start, sizeof start));
    return write_event(f);
}

/* ---- the file -------------------------------------------------------------------------------- */

/* Readers take files in the order of their names, which have seconds in ten digits; a second file of the same
 * second and process number would be of this one's past, and is not written over. */
static wb_status create_file(const char *dir, event_file *f) {
    char name[128], host[64] = "";
    gethostname(host, sizeof host - 1);
    snprintf(name, sizeof name, "events.out.tfevents.%010lld.%s.%ld", (long long)time(NULL), host,
             (long)getpid());
    WB_TRY(path_join(f->path, dir, name));
    const int fd = open(f->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    f->file = fd >= 0 ? fdopen(fd, "wb") : NULL;
    if (f->file) return WB_OK;
    const wb_status status = wb_fail(WB_IO, "%s: cannot be written: %m", f->path);
    if (fd >= 0) close(fd);
    return status;
}

wb_status event_file_open(const char *dir, uint64_t first_step, event_file **file_out) {
    event_file *f;
    WB_TRY(wb_dir_create(dir));
    WB_TRY(WB_NEW(f, 1, "file of events"));
    wb_status status = create_file(dir, f);
    if (status == WB_OK) status = write_start(f, first_step);
    if (status == WB_OK)
        *file_out = f;
    else
        event_file_close(f);
    return status;
}

void event_file_close(event_file *f) {
    if (!f) return;
    if (f->file) fclose(f->file);
    free(f->summary.data);
    free(f->event.data);
    free(f);
}

wb_status event_file_add(event_file *f, const char *group, const char *key, double value) {
    char tag[128];
    byte_string number = {0};
    snprintf(tag, sizeof tag, "%s/%s", group, key);
    wb_status status = put_bytes(&number, VALUE_TAG, tag, strlen(tag));
    if (status == WB_OK) status = put_float(&number, VALUE_NUMBER, (float)value);
    if (status == WB_OK) status = put_bytes(&f->summary, SUMMARY_VALUE, number.data, number.n);
    free(number.data);
    return status;
}

wb_status event_file_end_step(event_file *f, uint64_t step) {
    WB_TRY(begin_event(f, step));
    WB_TRY(put_bytes(&f->event, EVENT_SUMMARY, f->summary.data, f->summary.n));
    f->summary.n = 0;
    return write_event(f);
}
