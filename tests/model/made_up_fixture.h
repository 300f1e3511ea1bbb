/* made_up_fixture.h - model_fixture.h over models of the made-up family. */
#ifndef MADE_UP_FIXTURE_H
#define MADE_UP_FIXTURE_H

#include "made_up_family.h"
#include "model_fixture.h"
#include "wb_tensor_io.h"

/* The device and a model of `family` without values in its weights. */
static inline fixture empty_fixture_placed(wb_comm *comm, const wb_config *config,
                                           const wb_family_rules *family, const wb_placement *placement,
                                           wb_dispatch_policy dispatch) {
    fixture f = {.comm = comm};
    MUST(wb_device_open_cpu(1, &f.device));
    const wb_model_options options = {.size = sizeof options,
                                      .device = f.device,
                                      .comm = comm,
                                      .dtype = WB_F32,
                                      .activations = WB_F32,
                                      .placement = placement,
                                      .dispatch = dispatch};
    MUST(wb_model_new(config, family, &options, &f.model));
    return f;
}
static inline fixture empty_fixture(wb_comm *comm, const wb_config *config, const wb_family_rules *family) {
    return empty_fixture_placed(comm, config, family, NULL, WB_DISPATCH_STATIC);
}

/* With random weights, where its experts are placed. */
static inline fixture made_up_fixture_placed(wb_comm *comm, const wb_config *config, uint64_t seed,
                                             const wb_placement *placement, wb_dispatch_policy dispatch) {
    fixture f = empty_fixture_placed(comm, config, &made_up_family, placement, dispatch);
    MUST(wb_model_open_exchange(f.model));
    MUST(wb_model_fill_random(f.model, seed, 0.3F));
    perturb_vectors(&f, seed);
    fixture_finish(&f);
    return f;
}

/* A fixture over a model of the made-up family; its weights come from `seed`, or from a file. */
static inline fixture made_up_fixture(wb_comm *comm, const wb_config *config, uint64_t seed,
                                      const char *file) {
    fixture f = empty_fixture(comm, config, &made_up_family);
    if (file) {
        wb_safetensors *files;
        MUST(wb_safetensors_open(file, NULL, &files));
        uint64_t *digests = take(wb_model_n_tensors(f.model), sizeof *digests);
        MUST(wb_model_load(f.model, files, file, digests));
        free(digests);
        wb_safetensors_close(files);
    } else {
        MUST(wb_model_fill_random(f.model, seed, 0.3F));
        perturb_vectors(&f, seed);
    }
    fixture_finish(&f);
    return f;
}

#endif
