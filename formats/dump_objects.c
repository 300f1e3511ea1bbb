/* dump_objects.c - see dump_objects.h. */
#include "dump_objects.h"
#include "dump_layout.h"
#include "dump_sampling.h"

#include <time.h>

/* ---- header ------------------------------------------------------------------------------------- */

static void pack_list(wb_pack *p, const char *key, const uint32_t *list, uint32_t n) {
    wb_pack_text(p, key);
    wb_pack_array(p, n);
    for (uint32_t i = 0; i < n; i++) wb_pack_uint(p, list[i]);
}

static void pack_model(wb_pack *p, const wb_route_model *m) {
    wb_pack_text(p, "model");
    wb_pack_map(p, 7u + (m->n_weightless > 0) + (m->n_hash_layers > 0) + (m->n_indexer_layers > 0));
    wb_pack_text(p, "name");
    wb_pack_text(p, m->name);
    wb_pack_text(p, "fingerprint");
    wb_pack_text(p, m->fingerprint);
    wb_pack_text(p, "num_hidden_layers");
    wb_pack_uint(p, m->num_hidden_layers);
    pack_list(p, "moe_layers", m->moe_layers, m->n_moe_layers);
    wb_pack_text(p, "num_experts");
    wb_pack_uint(p, m->num_experts);
    if (m->layer_top_k) {
        pack_list(p, "top_k", m->layer_top_k, m->n_moe_layers);
    } else {
        wb_pack_text(p, "top_k");
        wb_pack_uint(p, m->top_k);
    }
    if (m->n_weightless > 0) {
        wb_pack_text(p, "weightless");
        wb_pack_uint(p, m->n_weightless);
    }
    wb_pack_text(p, "router");
    wb_pack_text(p, m->router);
    if (m->n_hash_layers > 0) pack_list(p, "hash_layers", m->hash_layers, m->n_hash_layers);
    if (m->n_indexer_layers == 0) return;
    wb_pack_text(p, "indexer");
    wb_pack_map(p, 3u + (m->indexer_rate > 0));
    pack_list(p, "layers", m->indexer_layers, m->n_indexer_layers);
    wb_pack_text(p, "k");
    wb_pack_uint(p, m->indexer_k);
    pack_list(p, "source", m->indexer_source, m->n_indexer_layers);
    if (m->indexer_rate == 0) return;
    wb_pack_text(p, "rate");
    wb_pack_uint(p, m->indexer_rate);
}

void wb_header_pack(wb_pack *p, const wb_route_model *m, const char *producer) {
    wb_pack_map(p, 7);
    wb_pack_text(p, "format");
    wb_pack_text(p, WB_DUMP_FORMAT);
    wb_pack_text(p, "version");
    wb_pack_uint(p, WB_DUMP_VERSION);
    pack_model(p, m);
    wb_pack_text(p, "dtype");
    wb_pack_text(p, wb_dtype_name(wb_route_dtype(m->num_experts)));
    wb_pack_text(p, "created");
    wb_pack_uint(p, (uint64_t)time(NULL));
    wb_pack_text(p, "producer");
    wb_pack_text(p, producer ? producer : "");
}

/* ---- records ------------------------------------------------------------------------------------ */

static void pack_spans(wb_pack *p, const wb_record *r) {
    wb_pack_text(p, "spans");
    wb_pack_array(p, r->n_spans);
    for (uint32_t i = 0; i < r->n_spans; i++) {
        wb_pack_array(p, 3);
        wb_pack_uint(p, r->spans[i].start);
        wb_pack_uint(p, r->spans[i].end);
        wb_pack_uint(p, r->spans[i].weight_version);
    }
}

void wb_record_pack(wb_pack *p, const wb_record *r, const wb_encoded_run *runs, const wb_encoded_run *indexer,
                    uint32_t shared, const char *base_rid) {
    size_t pairs = 7;
    pairs += wb_sampling_pairs(r);
    pairs += (r->logprobs ? 1u : 0u) + (r->n_spans > 0) + (shared > 0) + (r->n_routes > 0);
    pairs += r->indexer ? 1u : 0u;
    wb_pack_map(p, pairs);
    wb_pack_text(p, "rid");
    wb_pack_text(p, r->rid);
    wb_pack_text(p, "group");
    wb_pack_uint(p, r->group);
    wb_pack_text(p, "sample");
    wb_pack_uint(p, r->sample);
    wb_pack_text(p, "prompt_len");
    wb_pack_uint(p, r->prompt_len);
    wb_pack_text(p, "tokens");
    wb_pack_bin(p, r->tokens, (size_t)r->n_tokens * sizeof *r->tokens, true);
    if (r->logprobs) {
        wb_pack_text(p, "logprobs");
        wb_pack_bin(p, r->logprobs, (size_t)(r->n_tokens - r->prompt_len) * sizeof *r->logprobs, true);
    }
    wb_pack_text(p, "finish");
    wb_pack_text(p, wb_finish_name(r->finish));
    wb_sampling_pack(p, r);
    if (r->n_spans > 0) pack_spans(p, r);
    if (shared > 0) {
        wb_pack_text(p, "prefix");
        wb_pack_map(p, 2);
        wb_pack_text(p, "rid");
        wb_pack_text(p, base_rid);
        wb_pack_text(p, "rows");
        wb_pack_uint(p, shared);
    }
    if (r->indexer) {
        wb_pack_text(p, "indexer");
        wb_rows_pack(p, indexer);
    }
    if (r->n_routes == 0) return;
    wb_pack_text(p, "routes");
    if (r->n_routes > 1) wb_pack_array(p, r->n_routes);
    for (uint32_t i = 0; i < r->n_routes; i++) wb_rows_pack(p, &runs[i]);
}
