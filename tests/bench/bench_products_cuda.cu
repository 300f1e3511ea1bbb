/* bench_products_cuda.cu - the dense products of Qwen3-30B-A3B in bf16 at the sizes of decoding, prefill and
 * training: what an order of sums that does not depend on the number of rows costs, beside peers_cuda.py's
 * rows `product M N K`, where cuBLAS chooses freely.
 *
 *     bench_products_cuda [ROWS...]       64, 256, 2048 and 16384 rows
 *
 * Several products, each with weights of its own so that none is in the cache, are captured as one graph and
 * timed together; a line a shape, us and TFLOP/s of one. Refuses: grouped products (bench_layer_cuda). */
#include "bench/bench_cuda.h"
#include "support/usage.h"

namespace {

enum { CACHE_BYTES = 128 << 20, MAX_PRODUCTS = 16 };

struct product_shape {
    const char *name;
    int64_t N, K;
};

/* Outputs and inputs: of query, key and value together, of the projection behind attention, of the head. */
const product_shape shapes[] = {{"qkv", 5120, 2048}, {"out", 2048, 4096}, {"head", 151936, 2048}};

void run_shape(const product_shape &s, int64_t M) {
    const int64_t fit = CACHE_BYTES / (2 * s.N * s.K) + 1, count = std::min<int64_t>(fit, MAX_PRODUCTS);
    std::vector<wb_matmul> list;
    const wb_rows x = random_rows(M * s.K, 1.0f), y = random_rows(M * s.N, 1.0f);
    std::vector<void *> weights;
    for (int64_t i = 0; i < count; i++) {
        weights.push_back(random_rows(s.N * s.K, 0.02f).data);
        list.push_back(wb_matmul_forward(M, x, {weights.back(), WB_BF16, s.N, s.K}, y));
    }
    void *graph = nullptr;
    must(dev->matmul(dev, 1, &list[0]), "matmul"); /* makes what it needs */
    must(dev->graph_begin(dev), "graph");
    for (const wb_matmul &m : list) must(dev->matmul(dev, 1, &m), "matmul");
    must(dev->graph_end(dev, &graph), "graph");
    const double ms = median_ms([&] { must(dev->graph_launch(dev, graph), "graph"); }) / double(count);
    printf("product %-5s M %6lld, N %6lld, K %5lld: %9.2f us, %6.1f TFLOP/s\n", s.name,
           static_cast<long long>(M), static_cast<long long>(s.N), static_cast<long long>(s.K), 1e3 * ms,
           2.0 * double(M) * double(s.N) * double(s.K) / ms * 1e-9);
    fflush(stdout);
    dev->graph_free(dev, graph);
    for (void *w : weights) dev->mem_free(dev, w);
    dev->mem_free(dev, x.data);
    dev->mem_free(dev, y.data);
}

} // namespace

int main(int argc, char **argv) {
    int code;
    if (usage_ends(argc, argv, 0, 16, "usage: bench_products_cuda [ROWS...]\n", &code)) return code;
    const int64_t usual[] = {64, 256, 2048, 16384};
    if (!open_device()) return 77;
    for (int i = 0; i < (argc > 1 ? argc - 1 : 4); i++)
        for (const product_shape &s : shapes) {
            const int64_t M = argc > 1 ? atoll(argv[1 + i]) : usual[i];
            /* Logits of more rows than a chunk of a trainer's are not made at once. */
            if (s.N < 100000 || M <= 2048) run_shape(s, M);
        }
    wb_device_close(dev);
    return 0;
}
