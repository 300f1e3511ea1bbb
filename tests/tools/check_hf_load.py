#!/usr/bin/env python3
"""Checks that transformers loads a checkpoint that this engine saved, and computes the same logits from it.

Needs torch, transformers 5 and safetensors; tests/python/test_round_trip.py does it for every golden directory.

    hf_oracle --ranks 3 --save /tmp/saved tests/golden/olmoe && check_hf_load.py tests/golden/olmoe /tmp/saved

ORACLE is a directory of reference data (make_oracle.py), SAVED the checkpoint written from it. Exit code 0: every tensor used,
none missing, largest error of the logits at most 1e-4.
"""
import argparse
import os
import re
import sys

import torch
import transformers
from safetensors.torch import load_file


def is_behind(key, n_layers):
    """Of layers for multi-token prediction, which a decoder leaves in the file."""
    layer = re.match(r"model\.layers\.(\d+)\.", key)
    return key.startswith("mtp.") or (layer is not None and int(layer.group(1)) >= n_layers)


def load(saved):
    """(model in float32, what transformers did not find, or has no use for)"""
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        saved, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager", output_loading_info=True)
    n_layers = model.config.get_text_config().num_hidden_layers
    loading["unexpected_keys"] = [key for key in loading["unexpected_keys"] if not is_behind(key, n_layers)]
    return model.float(), {key: value for key, value in loading.items() if value}  # FP8 and FP4 are widened to bf16


def error_of(model, oracle):
    ref = load_file(os.path.join(oracle, "ref.safetensors"))
    with torch.no_grad():
        return (model(input_ids=ref["input_ids"], use_cache=False).logits - ref["logits"]).abs().max().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oracle")
    parser.add_argument("saved")
    args = parser.parse_args()
    model, faults = load(args.saved)
    if faults:
        sys.exit(f"{args.saved}: {faults}")
    error = error_of(model, args.oracle)
    print(f"{args.saved}: largest error of the logits {error:.3g}")
    if not error <= 1e-4:
        sys.exit(1)


if __name__ == "__main__":
    main()
