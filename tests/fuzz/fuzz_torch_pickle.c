/* fuzz_torch_pickle.c - any bytes as the pickle of a torch file: refused with a message, or values whose
 * numbers are all of the arrays that were read, in memory that is a constant times the bytes. */
#include "files/offline/torch_pickle.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds) {
    if (!holds) abort();
}

/* Items of a container are a list that ends where its count says. */
static void check_items(const wb_pickle *p, const wb_pickle_value *v) {
    uint32_t item = v->as.items.first;
    for (uint32_t i = 0; i < v->as.items.n; i++) {
        require(item < p->n_items && p->items[item].value < p->n_values);
        if (i + 1 == v->as.items.n) require(item == v->as.items.last);
        item = p->items[item].next;
    }
}

static bool is_inside(const char *bytes, size_t n, const uint8_t *data, size_t size) {
    const uint8_t *at = (const uint8_t *)bytes;
    return n == 0 || (at >= data && n <= size && (size_t)(at - data) <= size - n);
}

static void check_value(const wb_pickle *p, const wb_pickle_value *v, const uint8_t *data, size_t size) {
    switch (v->kind) {
    case WB_PICKLE_TUPLE:
    case WB_PICKLE_LIST:
    case WB_PICKLE_DICT:
        check_items(p, v);
        require(v->kind != WB_PICKLE_DICT || v->as.items.n % 2 == 0);
        return;
    case WB_PICKLE_TEXT:
        require(is_inside(v->as.text.bytes, v->as.text.n, data, size));
        return;
    case WB_PICKLE_STORAGE:
    case WB_PICKLE_TENSOR:
        require(v->as.tensor < p->n_tensors);
        require(is_inside(p->tensors[v->as.tensor].key, p->tensors[v->as.tensor].key_bytes, data, size));
        return;
    default:
        require(v->kind <= WB_PICKLE_GLOBAL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    wb_pickle p = {0};
    if (wb_pickle_read(data, size, &p) != WB_OK) {
        require(strstr(wb_error_message(), "pickle"));
        require(!p.values && !p.items && !p.tensors);
        return 0;
    }
    require(p.root < p.n_values && p.n_values <= size && p.n_items <= size && p.n_tensors <= size);
    for (size_t i = 0; i < p.n_values; i++) check_value(&p, &p.values[i], data, size);
    (void)wb_pickle_get(&p, &p.values[p.root], "logical_count");
    wb_pickle_close(&p);
    return 0;
}
