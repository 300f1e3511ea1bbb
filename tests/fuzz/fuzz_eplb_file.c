/* fuzz_eplb_file.c - any bytes as a placement's file: refused with a message that names it, or a placement
 * whose maps hold together, which written as JSON and as msgpack reads back the same. The topology has a
 * dead rank, a rank without slots and empty slots. */
#include "files/offline/tree_file.h"
#include "placement/placement_internal.h"
#include "wb_eplb.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { L = 2, E = 3, R = 4, S = 7 };
static const uint32_t slots[R] = {2, 0, 3, 2};
static const uint8_t dead[R] = {0, 0, 0, 1};
static const wb_topology topology = {
    .n_ranks = R, .n_nodes = 2, .n_slots = S, .slots_of_rank = slots, .dead = dead};

static char dir[40], paths[3][sizeof dir + 16];

static void require(bool holds) {
    if (!holds) abort();
}

static void remove_all(void) {
    for (int i = 0; i < 3; i++) unlink(paths[i]);
    rmdir(dir);
}

static void set_up(void) {
    static const char *const names[3] = {"in", "out.json", "out.msgpack"};
    const bool in_memory = access("/dev/shm", W_OK) == 0; /* files are synced: a disk is slow */
    snprintf(dir, sizeof dir, "%s/waybill-fuzz-XXXXXX", in_memory ? "/dev/shm" : "/tmp");
    require(mkdtemp(dir));
    for (int i = 0; i < 3; i++) snprintf(paths[i], sizeof paths[i], "%s/%s", dir, names[i]);
    atexit(remove_all);
}

static void put(const uint8_t *data, size_t size) {
    FILE *file = fopen(paths[0], "wb");
    require(file && fwrite(data, 1, size, file) == size && fclose(file) == 0);
}

static wb_status read_placement(const char *path, wb_placement **out) {
    *out = NULL;
    wb_status status = wb_placement_read(path, &topology, L, E, NULL, NULL, NULL, out);
    require((status == WB_OK) == !!*out);
    require(status == WB_OK || strstr(wb_error_message(), path));
    return status;
}

/* A tree that reads can be written, and is then the same. */
static void check_tree(void) {
    json_t *tree = NULL, *again = NULL;
    if (wb_tree_read(paths[0], &tree) != WB_OK) return;
    for (int i = 1; i < 3; i++) {
        if (wb_tree_write(paths[i], tree) != WB_OK) continue; /* nested too deeply for msgpack */
        require(wb_tree_read(paths[i], &again) == WB_OK && json_equal(tree, again));
        json_decref(again);
    }
    json_decref(tree);
}

static void check_maps(const wb_placement *p) {
    for (uint32_t l = 0; l < L; l++) {
        wb_layer_map map = wb_placement_layer(p, l);
        require(wb_placement_check_map(p, "fuzz", l, map.expert_of_slot, map.replica_of_slot) == WB_OK);
        for (uint32_t e = 0; e < E; e++)
            for (uint32_t i = map.replica_begin[e]; i < map.replica_begin[e + 1]; i++)
                require(map.expert_of_slot[map.replicas[i].slot] == (int32_t)e);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!paths[0][0]) set_up();
    put(data, size);
    check_tree();
    wb_placement *p, *again;
    if (read_placement(paths[0], &p) != WB_OK) return 0;
    check_maps(p);
    for (int i = 1; i < 3; i++) {
        require(wb_placement_save(p, paths[i], WB_MAP_SGLANG, NULL) == WB_OK);
        require(read_placement(paths[i], &again) == WB_OK);
        require(wb_placement_hash(again) == wb_placement_hash(p));
        wb_placement_close(again);
    }
    /* Slots of the dead rank are empty, which two layouts do not know. */
    require(wb_placement_save(p, paths[1], WB_MAP_TRTLLM, NULL) == WB_UNSUPPORTED);
    require(wb_placement_save(p, paths[1], WB_MAP_ASCEND, NULL) == WB_UNSUPPORTED);
    require(wb_placement_save(p, paths[1], WB_MAP_VLLM, NULL) == WB_OK);
    require(read_placement(paths[1], &again) == WB_OK);
    check_maps(again);
    wb_placement_close(again);
    wb_placement_close(p);
    return 0;
}
