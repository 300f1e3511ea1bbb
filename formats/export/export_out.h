/* export_out.h - what all layouts are written with: a buffer before the caller's function, numbers, text as
 * JSON and base64, the head of a .npy file; and the walk over the records of a dump (internal). */
#ifndef WB_EXPORT_OUT_H
#define WB_EXPORT_OUT_H

#include "export/wb_export.h"
#include "wb_zip.h"

enum { EXPORT_BUFFER_BYTES = 1 << 16 };

/* The first failure sticks: later calls write nothing. */
typedef struct export_out {
    wb_export_write_fn *write;
    void *ctx;
    wb_zip_writer zip; /* of an archive: its members are what is written */
    bool is_zip;
    wb_status status;
    uint8_t base64[3]; /* bytes that are no whole group yet */
    unsigned n_base64;
    size_t used;
    uint8_t buffer[EXPORT_BUFFER_BYTES];
} export_out;

void wb_export_bytes(export_out *out, const void *bytes, size_t size);
void wb_export_little(export_out *out, uint64_t value, unsigned bytes);
void wb_export_print(export_out *out, const char *format, ...) WB_PRINTF(2, 3);
void wb_export_text(export_out *out, const char *text); /* in quotes, as JSON has it */
void wb_export_real(export_out *out, float number); /* as JSON, which has finite numbers alone, as records */
void wb_export_base64(export_out *out, const void *bytes, size_t size);
void wb_export_base64_end(export_out *out);
wb_status wb_export_flush(export_out *out);

/* The head of a .npy file of elements `type` ("<i4"), into text of EXPORT_HEAD_BYTES. Returns its length. */
enum { EXPORT_HEAD_BYTES = 256, EXPORT_MAX_DIMS = 4 };
size_t wb_export_head(char *head_out, const char *type, unsigned n_dims, const uint64_t *shape);

/* A member "<name>.npy" of an archive begins with its head and ends. */
void wb_export_begin(export_out *out, const char *name, const char *type, unsigned n_dims,
                     const uint64_t *shape);
void wb_export_end(export_out *out);

/* ---- the dump ------------------------------------------------------------------------------------- */

typedef struct export_job {
    wb_dump *dump;
    const wb_route_model *model;
    export_out *out;
    uint64_t n;            /* records that are written */
    uint64_t *kept;        /* [n] which of the dump's they are; NULL: all of them */
    uint64_t passes, pass; /* over all of them; how many were made */
    void (*progress)(void *ctx, uint64_t done, uint64_t total);
    wb_export_skip_fn *skip;
    void *callback_ctx;
} export_job;

/* Calls `each` for every record that is written, in the dump's order, `i` counting them; `deep` looks at ids
 * first. */
typedef wb_status export_each(export_job *job, uint64_t i, const wb_record *record, void *ctx);
wb_status wb_export_walk(export_job *job, bool deep, export_each *each, void *ctx);

/* Lets `look` refuse records before anything is written, and leaves out those that job->skip says. NULL: what
 * wb_record_check refuses. */
wb_status wb_export_choose(export_job *job, export_each *look, void *ctx);

/* The row at a position as ids of `bytes` (1, 2 or 4) in all hidden layers, top_k in each, into `out` of
 * wb_export_row_bytes: zero in dense layers, -1 behind the choices of a layer that has fewer, and `missing`
 * throughout where there is none. True: there is a row. */
size_t wb_export_row_bytes(const wb_route_model *model, unsigned bytes);
bool wb_export_row(const wb_route_model *model, const wb_record *record, uint32_t position, unsigned bytes,
                   int32_t missing, uint8_t *row_out);

/* UNSUPPORTED where the record says what indexers chose, but not from position `first` on to its last row. */
wb_status wb_export_check_indexer(const wb_record *record, uint32_t first);
/* Its choices from `first` on, [rows][n_indexer_layers][indexer_k] int32, by wb_export_bytes or
 * wb_export_base64. */
typedef void export_put(export_out *out, const void *bytes, size_t size);
void wb_export_indexer(export_job *job, const wb_record *record, uint32_t first, export_put *put);

/* The weight version of a record that has one for all of its tokens; -1: none, or several. */
int64_t wb_export_version(const wb_record *record);

/* ---- layouts --------------------------------------------------------------------------------------- */

wb_status wb_export_sglang(export_job *job); /* export_lines.c */
wb_status wb_export_vllm(export_job *job);
wb_status wb_export_verl(export_job *job);  /* export_verl.c */
wb_status wb_export_slime(export_job *job); /* export_slime.c */
wb_status wb_export_npz(export_job *job);   /* export_npz.c */

#endif
