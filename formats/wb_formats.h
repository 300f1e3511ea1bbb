/* wb_formats.h - what passes between Waybill's rooms, and how it is kept in a file.
 *
 * Owns: the route tensor and the record, the dump file (msgpack) with its writer, reader and validator.
 * Refuses: MPI, CUDA, models.
 *
 * A rollout engine notes for each token which experts its router chose (the route tensor), puts that with
 * the tokens of the request (the record), and appends records to a file (the dump). A trainer reads the dump
 * and sends each token through the same experts again.
 *
 * Every pointer here is host memory, and no call is collective. Letters for dimensions, errors, outputs and
 * threads: as in wb_base.h, which this header includes.
 */
#ifndef WB_FORMATS_H
#define WB_FORMATS_H

#include "wb_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the route tensor --------------------------------------------------------------------------- */

/* Which model routes belong to: routes of one model are refused by another. Strings are UTF-8, not empty. */
typedef struct wb_route_model {
    char name[64]; /* model_type of config.json, "qwen3_moe" */
    /* 32 lower-case hex digits and NUL, made from the architecture; weights change with every step */
    char fingerprint[33];
    char router[16];            /* router type, "softmax_norm", ... (wb_router_name) */
    uint32_t num_hidden_layers; /* all layers, dense ones included; 1..65536 */
    uint32_t n_moe_layers;      /* L: the layers with experts, 1..num_hidden_layers */
    /* [L] their indices among all layers, from 0 on, ascending; owner: whoever owns this struct */
    const uint32_t *moe_layers;
    uint32_t num_experts; /* E: routed experts of a layer, 1..65536 */
    uint32_t top_k; /* K: experts chosen for a token in a layer, 1..E; the most of any, where layers differ */
    /* [L] those of each MoE layer, whose largest is top_k; NULL: top_k in all; owner: as of moe_layers */
    const uint32_t *layer_top_k;
    /* How many of the E have no weights, the last ones: they are chosen, recorded and replayed like the
     * others, and lie nowhere. Below E. */
    uint32_t n_weightless;
    /* [n_hash_layers] indices in moe_layers, ascending, of the layers whose choices are a table by token id
     * (wb_hash_routes); owner: as of moe_layers */
    uint32_t n_hash_layers;
    const uint32_t *hash_layers;
    /* Attention layers that an indexer chooses positions for (wb_indexer_rows); 0: the model has none. */
    uint32_t n_indexer_layers;
    uint32_t indexer_k; /* at most so many positions for a token in a layer, 1..2^30; 0 without such layers */
    /* How many tokens one of these positions stands for, 1..2^30; 1: they are tokens, 4: compressed entries
     * of 4 tokens each. 0: not known, as in files that do not say so: then nothing tells a choice of too few
     * (wb_indexer_count). */
    uint32_t indexer_rate;
    /* [n_indexer_layers] their indices among all layers, ascending; owner: as of moe_layers */
    const uint32_t *indexer_layers;
    /* [n_indexer_layers] the layer whose indexer layer i uses: itself, or one before it in the list that uses
     * its own */
    const uint32_t *indexer_source;
} wb_route_model;

/* The type of an expert id: WB_U8 when E <= 256, else WB_U16. It depends on E and never on the ids seen, or
 * two records of one model could differ in it. */
WB_API wb_dtype wb_route_dtype(uint32_t num_experts);

/* OK when E, K, L, the lists of layers and the strings are as the struct says, and a row has at most 1 GiB;
 * INVALID_ARGUMENT with a message that names the field otherwise. */
WB_API wb_status wb_route_model_check(const wb_route_model *model);

/* OK when both, already checked, are the same model; else MISMATCH with a message that names the first field
 * that differs. An indexer_rate that one of them does not know is no difference. */
WB_API wb_status wb_route_model_match(const wb_route_model *expected, const wb_route_model *found);

/* A run of consecutive rows. Row r holds the experts chosen when the token at absolute position start + r
 * was fed to the model: ids[r][l][k] is choice k in MoE layer l, a logical expert id (before any placement
 * maps it to a slot), in the order in which the router chose. Whether a row exists is a bit of `valid` and
 * never a value of its ids: with 256 experts every u8 is an expert. The run owns nothing. */
typedef struct wb_route_rows {
    uint32_t start; /* position of row 0 in the request */
    uint32_t rows;
    /* [rows][L][K of the layer] of wb_route_dtype(E), little endian; at any address: u16 ids are read by
     * wb_route_id */
    const void *ids;
    /* [(rows + 7) / 8] bits, bit r % 8 of byte r / 8 for row r; NULL: all rows are valid */
    const uint8_t *valid;
} wb_route_rows;

/* A second choice, recorded on request: the positions that an indexer chose for a token in an attention
 * layer. What a position counts is the model's: tokens, or the compressed entries that stand for
 * `indexer_rate` of them each; it is below wb_indexer_seen. A cell is one token's choice by one indexer, in
 * the indexer's column: cell r * columns + c is of the token at position start + r and of column c of the
 * wb_indexer_columns, one for each layer with an indexer of its own (wb_indexer_column). A layer that uses
 * another one's has no cell. A token that could choose nothing has cells of count 0, and one whose choice is
 * not known lies outside of the run. The run owns nothing. */
typedef struct wb_indexer_rows {
    uint32_t start; /* position of row 0 in the request */
    uint32_t rows;
    /* [rows][columns] how many were chosen: wb_indexer_count where the rate is known */
    const uint32_t *counts;
    /* [rows][columns] cell i has the positions from ends[i - 1], or 0, to ends[i]: counts[i] of them, or
     * none, and then the choice is all of 0 .. counts[i] - 1 */
    const uint64_t *ends;
    const uint32_t *positions; /* strictly ascending in a cell, each below wb_indexer_seen of start + r */
} wb_indexer_rows;

/* Tokens [start, end) of the request were fed while the model had the weights of `weight_version`. */
typedef struct wb_span {
    uint32_t start, end;
    uint64_t weight_version;
} wb_span;

typedef enum wb_finish {
    WB_FINISH_NONE,   /* still running or unknown; "none" in a dump */
    WB_FINISH_STOP,   /* a stop token was sampled (it is the last token); "stop" */
    WB_FINISH_LENGTH, /* max tokens reached; "length" */
    WB_FINISH_ABORT   /* aborted by the caller; "abort" */
} wb_finish;

/* "none", "stop", "length" or "abort", a static string; "unknown" for any other value. */
WB_API const char *wb_finish_name(wb_finish finish);

/* How tokens were sampled: from the softmax of logits / temperature over the top_k likeliest tokens, and of
 * these the smallest set, by probability descending, that reaches top_p. */
typedef struct wb_sampling {
    float temperature; /* 0: greedy, a point mass */
    uint32_t top_k;    /* 0: no limit */
    float top_p;       /* in (0, 1]; 1: no limit */
} wb_sampling;

/* One request with what it generated: the only thing that passes from rollout to trainer. A request of N
 * tokens has at most N - 1 rows, because the last sampled token was never fed. An array that is absent is
 * NULL and its count 0. The record owns nothing: who made it says how long its arrays live. */
typedef struct wb_record {
    const char *rid;        /* request id, 1..1024 bytes of UTF-8 and NUL, unique in a dump */
    uint64_t group;         /* requests of one prompt have the same number (the group of GRPO) */
    uint32_t sample;        /* which of its group's requests this is */
    uint32_t prompt_len;    /* tokens[0 .. prompt_len) is the prompt */
    uint32_t n_tokens;      /* prompt and sampled, below 2^30 */
    const uint32_t *tokens; /* [n_tokens] token ids */
    /* [n_tokens - prompt_len] of the sampled tokens: log of the probability at temperature 1; or NULL */
    const float *logprobs;
    wb_finish finish;
    uint32_t n_spans;
    const wb_span *spans;        /* ascending, disjoint */
    uint32_t n_routes;           /* runs of rows, ascending and disjoint; 0: routes were not asked for */
    const wb_route_rows *routes; /* [n_routes] */
    const wb_sampling *sampling; /* NULL: not known */
    /* [n_tokens - prompt_len] log of the probability under the distribution that was sampled from:
     * temperature, top-k and top-p applied; or NULL */
    const float *sampling_logprobs;
    /* The tokens that top-k and top-p kept when sampled token i was drawn, itself among them: mask_ids
     * [mask_ends[i - 1], mask_ends[i]) (from 0 for i = 0), strictly ascending ids below 2^31. mask_ends:
     * [n_tokens - prompt_len]. Both NULL: not recorded, or sampled without a limit. */
    const uint32_t *mask_ids, *mask_ends;
    const wb_indexer_rows *indexer; /* NULL: not asked for */
} wb_record;

/* XXH3-64 of tokens [n] as u32, little endian: what a dump calls `digest`. Two records, or a record and what
 * a trainer is to feed, have the same tokens when they have the same digest. */
WB_API uint64_t wb_tokens_digest(const uint32_t *tokens, uint32_t n);

/* ---- rows of a record --------------------------------------------------------------------------- */

/* Ids of one row: the sum of the layers' K, which is L * K where they are alike. */
WB_API size_t wb_route_row_ids(const wb_route_model *model);

/* Bytes of one row: its ids by dtype size. */
WB_API size_t wb_route_row_bytes(const wb_route_model *model);

/* K of MoE layer l, and the index in a row of the layer's first id. */
static inline uint32_t wb_route_layer_k(const wb_route_model *model, uint32_t l) {
    return model->layer_top_k ? model->layer_top_k[l] : model->top_k;
}
static inline size_t wb_route_layer_first(const wb_route_model *model, uint32_t l) {
    size_t first = (size_t)l * model->top_k;
    if (!model->layer_top_k) return first;
    first = 0;
    for (uint32_t i = 0; i < l; i++) first += model->layer_top_k[i];
    return first;
}

/* Experts that have weights, 0 .. wb_route_weighted - 1. */
static inline uint32_t wb_route_weighted(const wb_route_model *model) {
    return model->num_experts - model->n_weightless;
}

/* Id `index` of a row of `dtype` (u8 or u16, little endian, any alignment); choice k of MoE layer l has
 * index wb_route_layer_first + k. */
static inline uint32_t wb_route_id(const void *row, wb_dtype dtype, size_t index) {
    const uint8_t *bytes = (const uint8_t *)row;
    if (dtype == WB_U8) return bytes[index];
    return (uint32_t)bytes[2 * index] | (uint32_t)bytes[2 * index + 1] << 8;
}

/* Writes what wb_route_id reads; `id` fits `dtype`. */
static inline void wb_route_id_set(void *row, wb_dtype dtype, size_t index, uint32_t id) {
    uint8_t *bytes = (uint8_t *)row;
    if (dtype == WB_U8) {
        bytes[index] = (uint8_t)id;
    } else {
        bytes[2 * index] = (uint8_t)id;
        bytes[2 * index + 1] = (uint8_t)(id >> 8);
    }
}

/* How many of the K ids at `a`, which are distinct, are among the K at `b`. */
WB_API uint32_t wb_route_common(const void *a, const void *b, wb_dtype dtype, uint32_t K);

/* Whether the K ids at `a` and at `b` are the same ones in any order; those at `a` are distinct. */
WB_API bool wb_route_same_experts(const void *a, const void *b, wb_dtype dtype, uint32_t K);

/* Whether row `row` is valid, by the bits of wb_route_rows; `valid` NULL: all rows are. */
static inline bool wb_row_valid(const uint8_t *valid, size_t row) {
    return !valid || (valid[row / 8] >> (row % 8) & 1) != 0;
}
static inline void wb_row_set_valid(uint8_t *valid, size_t row, bool is_valid) {
    uint8_t bit = (uint8_t)(1u << row % 8);
    valid[row / 8] = (uint8_t)(is_valid ? valid[row / 8] | bit : valid[row / 8] & ~bit);
}

/* How many rows, from `row` on and below `rows`, are alike: all valid, or all not. At least 1; row < rows. */
WB_API uint32_t wb_row_stretch(const uint8_t *valid, uint32_t row, uint32_t rows);

/* The number of valid rows of a run of `rows`. */
WB_API uint32_t wb_row_count(const uint8_t *valid, uint32_t rows);

/* Copies the bits of rows [first, first + rows) to the beginning of valid_out, [(rows + 7) / 8] bytes that do
 * not overlap `valid`; bits after the last row become 0. `valid` NULL gives ones. */
WB_API void wb_row_copy_valid(const uint8_t *valid, uint32_t first, uint32_t rows, uint8_t *valid_out);

/* The calls below, wb_record_check apart, take records whose runs are ascending and disjoint, as
 * wb_record_check has found them. They cannot fail.
 *
 * The valid rows of a record in ascending position:
 *
 *     for (wb_row_walk walk = wb_rows_of(model, record); wb_row_next(&walk);) use(walk.position, walk.row);
 *
 * The walk keeps the pointer to the record; both must outlive it. */
typedef struct wb_row_walk {
    uint32_t position; /* of the current row in the request */
    const void *row;   /* [L][K] of wb_route_dtype(E) */
    /* The rest belongs to the walk: */
    const wb_record *record;
    size_t row_bytes;
    uint32_t run, next; /* where the next row is looked for */
} wb_row_walk;
WB_API wb_row_walk wb_rows_of(const wb_route_model *model, const wb_record *record);
WB_API bool wb_row_next(wb_row_walk *walk);

/* The row at `position`, [L][K] of wb_route_dtype(E); NULL when the record has none that is valid there. */
WB_API const void *wb_record_row(const wb_route_model *model, const wb_record *record, uint32_t position);

/* How many positions, from `position` on and below `end`, are alike: all with a valid row, and these rows
 * lie together in memory, *rows_out being the first; or all without one, *rows_out NULL. At least 1;
 * position < end. Two stretches with rows may follow each other, where a run ends and the next begins. */
WB_API uint32_t wb_record_stretch(const wb_route_model *model, const wb_record *record, uint32_t position,
                                  uint32_t end, const void **rows_out);

/* The number of valid rows. */
WB_API uint64_t wb_record_count_rows(const wb_record *record);

/* counts[l][e] += how often expert e was chosen in MoE layer l by the valid rows at positions [first, end);
 * 0 and UINT32_MAX are all of them. counts: in/out, [L][E]. Ids are not looked at again: they have passed
 * wb_record_check with `deep`, or an id that is not below E would be counted outside of its layer. */
WB_API void wb_record_count(const wb_route_model *model, const wb_record *record, uint32_t first,
                            uint32_t end, uint64_t *counts);

/* repeats[l] += at how many positions the experts of a valid row in MoE layer l are, in any order, those of
 * the valid row at the position before. repeats: in/out, [L]. Returns the number of positions that have such
 * a row before theirs. */
WB_API uint64_t wb_record_count_repeats(const wb_route_model *model, const wb_record *record,
                                        uint64_t *repeats);

/* ---- what indexers chose ------------------------------------------------------------------------ */

/* One token's choice by one indexer. */
typedef struct wb_indexer_choice {
    uint32_t count;
    const uint32_t *positions; /* [count] strictly ascending; NULL: 0 .. count - 1 */
} wb_indexer_choice;

/* How many layers use an indexer of their own: the columns of a row. */
WB_API uint32_t wb_indexer_columns(const wb_route_model *model);

/* The column of a row that has the choice of layer `i` of indexer_layers, i < n_indexer_layers: that of the
 * layer whose indexer it uses. */
WB_API uint32_t wb_indexer_column(const wb_route_model *model, uint32_t i);

/* The other way: the place in indexer_layers of the layer that has the indexer of `column`. */
WB_API uint32_t wb_indexer_layer(const wb_route_model *model, uint32_t column);

/* The choice of the token at `position` in `column`; false, and nothing written, when `rows`, of a record
 * that has passed wb_record_check, have none or are NULL. */
WB_API bool wb_indexer_at(const wb_route_model *model, const wb_indexer_rows *rows, uint32_t position,
                          uint32_t column, wb_indexer_choice *choice_out);

/* How many positions there are for the token at `position` < 2^30 to choose of, from 0 on: (position + 1) /
 * indexer_rate; where the rate is not known position + 1, as many as there can be. */
WB_API uint32_t wb_indexer_seen(const wb_route_model *model, uint32_t position);

/* How many of them an indexer chooses: all, and indexer_k at most. Where the rate is not known it may be
 * fewer. */
WB_API uint32_t wb_indexer_count(const wb_route_model *model, uint32_t position);

/* Position j of a choice, j < count. */
static inline uint32_t wb_indexer_position(const wb_indexer_choice *choice, uint32_t j) {
    return choice->positions ? choice->positions[j] : j;
}

/* How many positions are in both. */
WB_API uint32_t wb_indexer_common(wb_indexer_choice a, wb_indexer_choice b);

/* Whether both have the same positions. */
WB_API bool wb_indexer_same(wb_indexer_choice a, wb_indexer_choice b);

/* Where choices are computed and followed they are lists: int32 [k], the positions ascending, -1 behind the
 * last one. The choice that a list says points into it, or has positions NULL where they are 0 ..
 * count - 1, as a record has it. */
WB_API wb_indexer_choice wb_indexer_of_list(const int32_t *list, uint32_t k);

/* The list of a choice, whose count is at most k. list_out: [k] */
WB_API void wb_indexer_to_list(const wb_indexer_choice *choice, uint32_t k, int32_t *list_out);

/* What a token adds to KL(rollout || trainer) and to its neighbours: log r is the log-probability under which
 * the token was sampled minus that of the other side. */
typedef struct wb_kl_terms {
    double k1;    /* log r */
    double k3;    /* exp(-log r) - 1 + log r */
    bool outside; /* exp(-log r) is not within [0.5, 2]; true for NaN */
} wb_kl_terms;
WB_API wb_kl_terms wb_kl_of_token(float sampled_logprob, float other_logprob);

/* Checks a record against its model: strings and counts, spans ascending, runs ascending and inside [0,
 * n_tokens - 1), log-probabilities that are finite (one that is not would make every mean of them and every
 * KL nan), the numbers of its sampling, its mask and its indexer rows as wb_record has them, and with `deep`
 * that the ids of every valid row are below E and no two of a layer are the same. INVALID_ARGUMENT with a
 * message that names rid, position and MoE layer otherwise. */
WB_API wb_status wb_record_check(const wb_route_model *model, const wb_record *record, bool deep);

/* Whether the tokens of a record, which has passed wb_record_check, and those that it kept in sampling are
 * below vocab_size; 0: not known, and nothing is compared. INVALID_ARGUMENT names rid, position and token of
 * the first that is not: what takes it would read beyond a model's embedding, or its logits. */
WB_API wb_status wb_record_check_vocabulary(const wb_record *record, uint32_t vocab_size);

/* Where tokens go in the hash-routed layers of a model: not by a router's logits but by a table, the same for
 * a token wherever it stands. */
typedef struct wb_hash_routes {
    /* [n_hash_layers] indices among the MoE layers, ascending, as of wb_route_model */
    uint32_t n_hash_layers;
    const uint32_t *hash_layers;
    uint32_t vocab_size; /* V */
    const int32_t
        *ids; /* host [n_hash_layers][V][top_k of the model] experts below E, distinct for a token */
} wb_hash_routes;

/* Whether the valid rows of a record, which has passed wb_record_check with `deep`, are those of the tables,
 * in their order: MISMATCH names rid, position, layer and token of the first that is not, with the experts of
 * both. `hash` is of the record's `model`. */
WB_API wb_status wb_record_check_hash(const wb_route_model *model, const wb_hash_routes *hash,
                                      const wb_record *record);

/* ---- the dump: writing -------------------------------------------------------------------------- */

/* How rows are stored, the order of choices kept. A reader learns it from the file. */
typedef enum wb_codec {
    WB_CODEC_RAW,
    WB_CODEC_ZSTD,
    /* Each row against the one before and by how popular experts are: about two thirds of raw where tokens
     * share experts with the ones before. The ids of rows that are not valid are not kept. A model with
     * E > 256 or K > 16 gets zstd instead. */
    WB_CODEC_PACKED
} wb_codec;

/* "raw", "zstd" or "packed", a static string; NULL for any other value. */
WB_API const char *wb_codec_name(wb_codec codec);

/* Made by wb_dump_options_default, then changed field by field. */
typedef struct wb_dump_options {
    size_t size;          /* of this struct, as its user was compiled; set by the initialiser */
    wb_codec codec;       /* default raw: read in place, nothing is decoded */
    int zstd_level;       /* 1..19, default 3; of rows that are stored as zstd */
    size_t chunk_bytes;   /* a run of more bytes is stored as several bins; 1 .. 1 GiB, the default */
    const char *producer; /* free text for the header, UTF-8, read by wb_dump_create only; default NULL: "" */
    bool trust_ids;       /* default false; true: append does not look at ids, for rows that a router made */
    uint8_t reserved[7];  /* zero */
} wb_dump_options;

/* Writes the defaults into *options_out, a struct of `size` bytes: sizeof(wb_dump_options). */
WB_API void wb_dump_options_init(wb_dump_options *options_out, size_t size);
static inline wb_dump_options wb_dump_options_default(void) {
    wb_dump_options options;
    wb_dump_options_init(&options, sizeof options);
    return options;
}

typedef struct wb_dump_writer wb_dump_writer;

/* Creates the file `path` and writes the header. One writer a file; a directory of such files
 * ("part-<rank>.wbr", extension .wbr) is one dump. `model` is copied. `options` NULL: the defaults. IO when
 * the path exists or cannot be created, INVALID_ARGUMENT for a model or an option that is not as described;
 * no file is left behind then. The writer is freed by wb_dump_finish or
 * wb_dump_abandon. */
WB_API wb_status wb_dump_create(const char *path, const wb_route_model *model, const wb_dump_options *options,
                                wb_dump_writer **writer_out);

/* Appends one record, which is not kept. On return the system has all of its bytes, so that a crash of the
 * process loses no record. When an earlier record of the same group in this file has bit-identical rows for
 * the beginning of the prompt, they are stored as a reference to it ("prefix" in the file).
 * INVALID_ARGUMENT: the file has a record of this rid, or the record fails wb_record_check (deep unless
 * trust_ids); nothing is written. IO: a write failed (a full disk); the file is cut back to its last whole
 * record and the writer can go on. */
WB_API wb_status wb_dump_append(wb_dump_writer *writer, const wb_record *record);

typedef struct wb_dump wb_dump;

/* Appends record `i` of a dump of the same model. Its bytes are copied as they are stored, with codec and
 * keys that this version does not know, unless it has a prefix and the record that has these rows is not in
 * the writer's file as this dump has it: then wb_dump_append encodes it anew. Whatever reading it finds
 * (CORRUPT) and what wb_dump_append refuses is refused; MISMATCH: the dump is of another model. Nothing is
 * written then. */
WB_API wb_status wb_dump_append_stored(wb_dump_writer *writer, wb_dump *dump, uint64_t i);

/* Writes index and trailer, syncs the file to disk, closes it and frees the writer, also on failure (IO).
 * NULL is a no-op. A file that was never finished can be read too: the reader walks its records instead of
 * using the index. */
WB_API wb_status wb_dump_finish(wb_dump_writer *writer);

/* Closes the file as it is and frees the writer, without index and trailer: what a crash of the process
 * would leave. All records that were appended can be read, and wb_dump_info counts the file among those
 * without an index, so that it is not taken for one that was written to its end. NULL is a no-op. */
WB_API void wb_dump_abandon(wb_dump_writer *writer);

/* ---- the dump: reading -------------------------------------------------------------------------- */

/* What opening found out about the files' integrity. */
typedef struct wb_dump_info {
    uint64_t files, records;
    uint64_t bytes;               /* of all files */
    uint64_t files_without_index; /* cut, or still being written: their records were found by walking */
    uint64_t lost_bytes;          /* bytes after the last whole object of such files */
    char lost_where[1024];        /* the first such place: "run/part-0.wbr: byte 1234: ...", or "" */
    uint64_t files_cut; /* files that end inside an object; those cut before their header have 0 bytes */
} wb_dump_info;

/* Opens a dump file, or all *.wbr files of a directory in the order of their names. A file that was cut
 * yields every whole record before the cut, one cut inside its header (or empty) none, and info says what was
 * lost.
 * Each file's name is looked up again when its records are asked for, and up to 16,384 files are mapped at a
 * time: those of which records are held stay, and when there are more of them their bytes are read into
 * memory. Files may grow meanwhile, but not shrink, move or be replaced: what is appended after opening is
 * not seen, and the rest is IO where it is noticed.
 * CORRUPT: bytes are damaged rather than cut (checksum, structure), a rid is there twice, or no file has a
 * whole header, so that no model is known (as when every rank died before it had written anything).
 * UNSUPPORTED: another format, another version, an unknown codec. MISMATCH: a file of another model than the
 * first one's. NOT_FOUND: a directory without such files. IO: a file cannot be read. Each names the file with
 * its directory and where it can the byte. Memory stays below a small multiple of the files' size whatever
 * their bytes say. */
WB_API wb_status wb_dump_open(const char *path, wb_dump **dump_out);

/* Bytes of a file of a dump that are lost. */
typedef struct wb_dump_loss {
    const char
        *path; /* of the file, with its directory; it lives as long as the call, as do the other texts */
    uint64_t offset;
    uint64_t bytes;  /* 0: a record is saved without its first rows; without a rid: the file is empty */
    const char *rid; /* of the record that begins there; NULL: none can be read */
    const char *why;
} wb_dump_loss;

/* Opens what is whole of a dump that may be cut or damaged: each record that passes all of wb_dump_verify,
 * wherever it lies. `lost` (may be NULL) is called with `ctx` for each stretch of bytes that is left out,
 * while the dump is being opened; wb_dump_info says nothing of them. A record whose prefix refers to a lost
 * one is given without these rows. Where a record begins after damage is found by its first key, which is rid
 * in every file that this library has written. CORRUPT: no file has a whole header, so that no model is
 * known; IO and NOT_FOUND as wb_dump_open. */
WB_API wb_status wb_dump_salvage(const char *path, void (*lost)(void *ctx, const wb_dump_loss *loss),
                                 void *ctx, wb_dump **dump_out);

/* Frees the dump and all that its records point to. NULL is a no-op. */
WB_API void wb_dump_close(wb_dump *dump);

/* The model of all files; owner: the dump. */
WB_API const wb_route_model *wb_dump_model(const wb_dump *dump);
WB_API wb_dump_info wb_dump_get_info(const wb_dump *dump);

/* Record i in file order, i < info.records. Each success holds the record once more, and a wb_dump_release
 * gives back one of these: a function that reads a record which its caller holds too, and releases it, takes
 * nothing from the caller. What a record points to belongs to the dump and stays while the record is held;
 * rid stays until wb_dump_close, which needs no releases before it. tokens and logprobs are aligned to 4
 * bytes. The first access verifies the rows' checksum (CORRUPT otherwise), but ids are verified by
 * wb_dump_verify and wb_record_check alone: whoever uses ids as indices calls one of them first. */
WB_API wb_status wb_dump_record(wb_dump *dump, uint64_t i, wb_record *record_out);

/* The number of the record with this rid; NOT_FOUND, with the rid in the message, when there is none. */
WB_API wb_status wb_dump_index(const wb_dump *dump, const char *rid, uint64_t *i_out);

/* wb_dump_index and wb_dump_record in one. */
WB_API wb_status wb_dump_find(wb_dump *dump, const char *rid, wb_record *record_out);

/* Gives back one wb_dump_record or wb_dump_find of record i. The last one frees what the record points to,
 * and wb_dump_record makes it again. A record that is not held is a no-op. */
WB_API void wb_dump_release(wb_dump *dump, uint64_t i);

/* What the file says about record i beyond the record itself, for tools. Strings belong to the dump. */
typedef struct wb_dump_entry {
    const char *file; /* its name, without the directory */
    uint64_t offset;  /* where in the file the record begins, in bytes */
    uint64_t bytes;   /* of the whole record in the file */
    uint32_t n_tokens;
    uint64_t stored_rows;      /* without the rows of the prefix, which another record has */
    uint64_t stored_row_bytes; /* of these rows as they are stored, after the codec */
    wb_codec codec;            /* of the first run; raw when there is none */
    const char *prefix_rid;    /* the record whose rows its first prefix_rows rows are, or NULL */
    uint32_t prefix_rows;      /* 0 without a prefix */
    const char *path;          /* the file's name with the directory, as messages say it */
    uint32_t n_spans;
    uint64_t weight_version; /* of the last span, under which the record was finished; 0 without spans */
    uint64_t valid_rows;     /* of the stored ones, and all of the prefix */
    uint64_t group;          /* of the record; as is sample */
    uint32_t sample;
    bool has_digest; /* the file has a digest of its tokens, which reading it has compared */
    /* Rows that say what indexers chose, and their bytes as they are stored, after the codec; 0: none do. */
    uint64_t stored_indexer_rows, stored_indexer_bytes;
} wb_dump_entry;
WB_API wb_status wb_dump_get_entry(wb_dump *dump, uint64_t i, wb_dump_entry *entry_out);

/* Checks all that wb_dump_open checks, and of every record checksum, shapes, ids in range and distinct.
 * `progress` (may be NULL) is called with `ctx` after each record: `done` of `total` have been checked. The
 * first fault is returned, as of wb_dump_open; CORRUPT for a record. *info_out is set when there is none. */
WB_API wb_status wb_dump_verify(const char *path, void (*progress)(void *ctx, uint64_t done, uint64_t total),
                                void *ctx, wb_dump_info *info_out);

/* What wb_dump_verify checks of record i, for who reads records too: one that the caller holds is not read
 * again. Errors as of wb_dump_record, and CORRUPT. */
WB_API wb_status wb_dump_verify_record(wb_dump *dump, uint64_t i);

#ifdef __cplusplus
}
#endif
#endif
