/* dump_layout.h - the dump file, version 1, byte by byte (internal; writer and reader include it).
 *
 * A file is a msgpack stream: header, records, index, trailer. Little endian in every bin. Unknown keys
 * are skipped (minor versions add keys); another `version` is refused. Key order is free but for `xxh3`.
 *
 *   header  {format "waybill.routes", version 1, model {name, fingerprint, num_hidden_layers,
 *            moe_layers [..], num_experts, top_k (or one for each MoE layer [..]), weightless (absent: 0),
 *            router, hash_layers [..] (absent: none), indexer {layers [..], k, source [..], rate (absent: not
 *            known)} (absent: none)},
 *            dtype "u8" | "u16", created (unix seconds), producer, xxh3}
 *   record  {rid, group, sample, prompt_len, tokens (bin, u32), logprobs (bin, f32; absent: none), finish,
 *            spans [[start, end, weight_version] ..] (absent: none), prefix {rid, rows} (absent: none),
 *            digest (XXH3-64 of tokens), sampling {temperature, top_k, top_p} (f32, uint, f32),
 *            sampling_logprobs (bin, f32), sampling_mask {ids (bin, u32), ends (bin, u32)} (each absent:
 *            not known), indexer (absent: none), routes, xxh3}
 *   routes  {start, rows, codec "raw" | "zstd" | "packed", valid (bin; bit r % 8 of byte r / 8; absent: all
 *            valid), xxh3, data}; a list of such maps when the rows are in several runs; absent when there
 *            are none
 *   data    bin, or a list of bins of whole rows each when over the writer's chunk size; codec per chunk;
 *            decoded: [row][MoE layer][choice]
 *   indexer {start, rows, codec "raw" | "zstd", xxh3, data}: what the indexers chose, coded as in
 *           dump_indexer.h; data as in routes, cut anywhere
 *   prefix  the `rows` rows just before position routes.start (of the first run) are those that record
 *            `rid`, earlier in this file and itself without a prefix, holds valid at the same positions
 *   index   {index {rid: byte offset of its record, ..., in file order}, xxh3}
 *   trailer {trailer: bin of 24 bytes}, 35 bytes in all: "WBRINDEX", u64 byte offset of the index, u64
 *            XXH3-64 of the 16 bytes before
 *
 * Checksums are XXH3-64. The last key of header, record and index is `xxh3`, a uint 64 (always 9 bytes: 0xcf,
 * big endian). It is the checksum of the map's bytes before those 9 without the payloads of `data`: those
 * have their own, the `xxh3` of their map, of the bytes as they are stored (chunks joined), so that damage is
 * found before a decompressor sees it.
 *
 * Without index and trailer a file is whole too (cut, or being written): the reader walks the records. A
 * file that ends inside an object was cut there. Anything else that does not fit is damage. */
#ifndef WB_DUMP_LAYOUT_H
#define WB_DUMP_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WB_DUMP_FORMAT "waybill.routes"
#define WB_DUMP_VERSION 1
#define WB_DUMP_EXTENSION ".wbr"

#define WB_CHUNK_BYTES_MAX ((size_t)1 << 30)
#define WB_HEADER_BYTES_MAX ((size_t)1 << 20)
/* No record is shorter: its required keys and its checksum alone are longer. It bounds the number of records
 * that an index can claim for the bytes it has. */
#define WB_RECORD_BYTES_MIN 64

/* The end of a sealed map: the key "xxh3", then 0xcf and 8 bytes. */
#define WB_SEAL_KEY "\xa4xxh3\xcf"
#define WB_SEAL_KEY_BYTES 6
#define WB_SEAL_VALUE_BYTES 9
#define WB_SEAL_BYTES (WB_SEAL_KEY_BYTES + 8)

#define WB_TRAILER_MAGIC "WBRINDEX"
#define WB_TRAILER_HEAD "\x81\xa7trailer\xc4\x18"
#define WB_TRAILER_HEAD_BYTES 11
/* Byte of the trailer where the offset of the index is. */
#define WB_TRAILER_OFFSET_AT (WB_TRAILER_HEAD_BYTES + 8)
#define WB_TRAILER_BYTES (WB_TRAILER_HEAD_BYTES + 24)

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "dump files are little endian and their arrays are used in place"
#endif

/* The trailer of an index at byte `index_offset`. */
void wb_trailer_fill(uint64_t index_offset, uint8_t trailer_out[WB_TRAILER_BYTES]);

/* Whether a checksum is the one expected; always true in a fuzzing build, which must get past checksums. */
bool wb_checksum_ok(uint64_t expected, uint64_t found);

#endif
