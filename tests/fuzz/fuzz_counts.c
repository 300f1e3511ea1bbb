/* fuzz_counts.c - any bytes as a file of counts, a zip archive of torch.save among them: refused with a
 * message that names it, or counts that are finite and not negative, twice as many when the file is given
 * twice. */
#include "wb_load.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[64];

static void require(bool holds) {
    if (!holds) abort();
}

static void remove_file(void) {
    unlink(path);
}

static void put(const uint8_t *data, size_t size) {
    if (!path[0]) {
        const bool in_memory = access("/dev/shm", W_OK) == 0;
        snprintf(path, sizeof path, "%s/waybill-fuzz-counts-%ld", in_memory ? "/dev/shm" : "/tmp",
                 (long)getpid());
        atexit(remove_file);
    }
    FILE *file = fopen(path, "wb");
    require(file && fwrite(data, 1, size, file) == size && fclose(file) == 0);
}

static void check(const wb_counts *once, const wb_counts *twice) {
    const wb_counts_info i = wb_counts_get_info(once), k = wb_counts_get_info(twice);
    const size_t cells = (size_t)i.n_passes * i.n_layers * i.n_experts;
    const double *a = wb_counts_loads(once), *b = wb_counts_loads(twice);
    require(cells > 0 && i.n_passes == k.n_passes && i.n_layers == k.n_layers && i.n_experts == k.n_experts);
    for (size_t c = 0; c < cells; c++) require(isfinite(a[c]) && a[c] >= 0 && b[c] == 2 * a[c]);
    wb_counts_run run;
    require(wb_counts_find_run(once, &run) == WB_OK);
    require(run.n_layers <= i.n_layers && run.n_experts <= i.n_experts / 2 &&
            (run.n_layers == 0 || (run.first < i.n_experts && run.n_experts > 0)));
    for (uint32_t l = 0; l < i.n_layers; l++) {
        uint32_t block = 7;
        require(i.layers[l] == l);
        if (wb_counts_in_one_block(once, l, 3, &block)) require(block < 3 && i.informed[l]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const uint32_t moe[] = {1, 2};
    const wb_moe_layers layers = {.n_hidden = 4, .n_moe = 2, .layers = moe};
    const char *paths[] = {path, path};
    wb_counts *once = NULL, *twice = NULL, *mapped = NULL;
    put(data, size);
    if (wb_counts_read(1, paths, NULL, &once) != WB_OK) {
        require(!once && strstr(wb_error_message(), path));
        return 0;
    }
    if (wb_counts_read(2, paths, NULL, &twice) == WB_OK) check(once, twice);
    if (wb_counts_read(1, paths, &layers, &mapped) == WB_OK)
        require(wb_counts_get_info(mapped).n_layers == 2);
    wb_counts_close(mapped);
    wb_counts_close(twice);
    wb_counts_close(once);
    return 0;
}
