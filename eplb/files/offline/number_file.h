/* number_file.h - files of named arrays of numbers, whatever they are: JSON, msgpack or PyTorch's; and an
 * array of such a file as a table. Owns: shapes and values of arrays. Refuses: what the arrays mean. */
#ifndef WB_NUMBER_FILE_H
#define WB_NUMBER_FILE_H

#include "files/offline/torch_file.h"
#include "files/offline/tree_file.h"

typedef struct wb_number_file {
    json_t *tree; /* NULL: it is PyTorch's */
    wb_torch_file torch;
} wb_number_file;

/* Messages name the path. Owner: the caller (wb_number_file_close). */
wb_status wb_number_file_open(const char *path, wb_number_file *file_out);
void wb_number_file_close(wb_number_file *file); /* a zeroed struct is a no-op */

/* A value of a file: one of the two; a zeroed one is none. Owner: the file. */
typedef struct wb_number_node {
    const json_t *tree;
    const wb_pickle_value *torch;
} wb_number_node;

wb_number_node wb_number_root(const wb_number_file *file);
bool wb_number_is(wb_number_node node);       /* there is one */
bool wb_number_is_array(wb_number_node node); /* an array, a tensor or a list of a pickle */
/* The value of a key; none where it is absent or null, and in what is no map. */
wb_number_node wb_number_get(const wb_number_file *file, wb_number_node map, const char *key);

enum { WB_TABLE_MAX_DIMS = WB_PICKLE_MAX_DIMS };

typedef enum wb_table_kind {
    WB_TABLE_COUNTS,  /* finite numbers of at least 0 */
    WB_TABLE_EXPERTS, /* whole numbers from -1 (no expert) to 2^31 - 1, given as whole numbers */
    WB_TABLE_REPLICAS /* the same from 0 */
} wb_table_kind;

/* What is asked of an array. Shape and units are those of the innermost `max_dims` dimensions. */
typedef struct wb_table_wish {
    const char *name; /* "logical_count": what messages begin with */
    wb_table_kind kind;
    uint32_t min_dims, max_dims;
    const char *units[WB_TABLE_MAX_DIMS]; /* [max_dims] "layers" */
    size_t shape[WB_TABLE_MAX_DIMS];      /* [max_dims] as many; 0: any number, but of every row the same */
} wb_table_wish;

typedef struct wb_table {
    uint32_t n_dims;
    size_t shape[WB_TABLE_MAX_DIMS]; /* [n_dims] */
    double *values;                  /* [shape[0]] [shape[1]] ...; freed with free() */
} wb_table;

/* CORRUPT for what is no array of such numbers, MISMATCH for other sizes, naming the place: "name[2][57]". */
wb_status wb_table_read(const wb_number_file *file, wb_number_node node, const wb_table_wish *wish,
                        wb_table *table_out);

#endif
