"""Compares the selection biases of a checkpoint with those before and with the routes that an update followed, of a dump.

usage: check_bias.py RATE BEFORE AFTER DUMP     exit 0: each bias moved by RATE against its load, 1: not
BEFORE and AFTER are folders with a model.safetensors in f32, DUMP a folder of the samples of one update.
"""
import glob
import json
import sys

import numpy as np

from read_dump import files_of, read


def tensors(folder):
    """Name -> f32 array of the biases."""
    found = {}
    for path in sorted(glob.glob(folder + "/*.safetensors")):
        with open(path, "rb") as file:
            data = file.read()
        header = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + header]).items():
            if name.endswith("e_score_correction_bias"):
                begin, end = (8 + header + at for at in entry["data_offsets"])
                found[name] = np.frombuffer(data[begin:end], {"F32": "<f4"}[entry["dtype"]])
    return found


def loads(dump, layers, n_experts):
    counts = np.zeros((layers, n_experts), np.int64)
    for path in files_of(dump):
        for _, rows in read(path):
            for row in rows.values():
                for layer, ids in enumerate(row):
                    counts[layer] += np.bincount(ids, minlength=n_experts)
    return counts


rate, before, after = float(sys.argv[1]), tensors(sys.argv[2]), tensors(sys.argv[3])
names = sorted(before)
counts = loads(sys.argv[4], len(names), len(before[names[0]]))
for name, load in zip(names, counts):
    step = np.float32(rate) * np.sign(load.mean() - load).astype(np.float32)
    expected = (before[name] + step).astype(np.float32)
    print(f"{name}: load {load.min()} to {load.max()}, {np.count_nonzero(step)} of {len(step)} are to move")
    if not np.array_equal(expected, after[name]):
        sys.exit(f"{name}: expected {expected}, found {after[name]}")
