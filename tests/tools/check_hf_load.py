#!/usr/bin/env python3
"""Checks that transformers loads a checkpoint that this engine saved, and computes the same logits from it.

Needs torch, transformers 5 and safetensors; not part of the test run.

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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oracle")
    parser.add_argument("saved")
    args = parser.parse_args()
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        args.saved, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager", output_loading_info=True)
    layer = re.compile(r"model\.layers\.(\d+)\.")
    for key in list(loading["unexpected_keys"]):  # layers for multi-token prediction, which a decoder leaves in the file
        found = layer.match(key)
        if found and int(found.group(1)) >= model.config.num_hidden_layers:
            loading["unexpected_keys"].remove(key)
    faults = {key: value for key, value in loading.items() if value}
    if faults:
        sys.exit(f"{args.saved}: {faults}")
    ref = load_file(os.path.join(args.oracle, "ref.safetensors"))
    with torch.no_grad():
        error = (model(input_ids=ref["input_ids"], use_cache=False).logits - ref["logits"]).abs().max().item()
    print(f"{args.saved}: largest error of the logits {error:.3g}")
    if not error <= 1e-4:
        sys.exit(1)


if __name__ == "__main__":
    main()
