/* fuzz_safetensors_index.c - any bytes as a checkpoint's model.safetensors.index.json beside two shards:
 * refused with a message, or every tensor comes from a shard of that directory. A file of the same kind
 * lies outside, for names that lead there. */
#include "wb_tensor_io.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char root[] = "/tmp/waybill-fuzz-XXXXXX", dir[sizeof root + 8], index_path[sizeof dir + 40];

static const struct {
    const char *name, *tensor;
} files[] = {{"model/a.safetensors", "x"}, {"model/b.safetensors", "y"}, {"outside.safetensors", "z"}};
enum { N_FILES = sizeof files / sizeof files[0] };

static void require(bool holds) {
    if (!holds) abort();
}

static void put(const char *path, const void *head, size_t head_bytes, const void *data, size_t size) {
    FILE *file = fopen(path, "wb");
    require(file && fwrite(head, 1, head_bytes, file) == head_bytes);
    require(fwrite(data, 1, size, file) == size && fclose(file) == 0);
}

/* One tensor of two bytes, named `tensor`. */
static void put_shard(const char *path, const char *tensor) {
    char json[128];
    snprintf(json, sizeof json, "{\"%s\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]}}", tensor);
    char tail[sizeof json + 2] = {0};
    uint64_t length = strlen(json);
    memcpy(tail, json, length);
    put(path, &length, sizeof length, tail, length + 2);
}

static void remove_all(void) {
    char path[128];
    for (int i = 0; i < N_FILES; i++) {
        snprintf(path, sizeof path, "%s/%s", root, files[i].name);
        unlink(path);
    }
    unlink(index_path);
    rmdir(dir);
    rmdir(root);
}

static void set_up(void) {
    char path[128];
    require(mkdtemp(root) != NULL);
    snprintf(dir, sizeof dir, "%s/model", root);
    snprintf(index_path, sizeof index_path, "%s/model.safetensors.index.json", dir);
    require(wb_dir_create(dir) == WB_OK);
    for (int i = 0; i < N_FILES; i++) {
        snprintf(path, sizeof path, "%s/%s", root, files[i].name);
        put_shard(path, files[i].tensor);
    }
    atexit(remove_all);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (index_path[0] == '\0') set_up();
    put(index_path, NULL, 0, data, size);
    wb_safetensors *st = NULL;
    if (wb_safetensors_open(dir, NULL, &st) != WB_OK) {
        require(!st && strstr(wb_error_message(), dir));
        return 0;
    }
    for (size_t i = 0; i < wb_safetensors_count(st); i++) {
        wb_tensor_view view;
        require(wb_safetensors_get(st, i, &view) == WB_OK && view.bytes == 2);
        require(strncmp(view.file, dir, strlen(dir)) == 0 && !strchr(view.file + strlen(dir) + 1, '/'));
        require(strcmp(view.name, "x") == 0 || strcmp(view.name, "y") == 0);
    }
    wb_safetensors_close(st);
    return 0;
}
