#!/usr/bin/env python3
"""Writes counts of the shape and the skew of published loads of DeepSeek-V3: 61 hidden layers of 256 experts in 8 groups, the
first three of them dense and so all zero. They are made up, from a seed; nothing is copied.

usage: make_loads.py [--seed N] [--tokens T] >FILE

In a layer an expert's popularity is exp(GROUP x normal of its group + EXPERT x normal), where GROUP itself grows from layer to
layer at random: some layers are far less even than the others. Counts are T tokens x 8 choices, rounded.
tests/golden/loads/deepseek_v3_shape.json: the defaults.
"""
import argparse
import json
import math
import random

LAYERS, DENSE, EXPERTS, GROUPS, TOP_K = 61, 3, 256, 8, 8
EXPERT, GROUP_MIN, GROUP_MAX = 0.55, 0.4, 0.7


def layer(rng, tokens):
    spread = GROUP_MIN + (GROUP_MAX - GROUP_MIN) * rng.random()
    groups = [rng.gauss(0, spread) for _ in range(GROUPS)]
    weights = [math.exp(groups[e * GROUPS // EXPERTS] + rng.gauss(0, EXPERT)) for e in range(EXPERTS)]
    total = sum(weights)
    return [round(tokens * TOP_K * w / total) for w in weights]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=262144)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    rows = [[0] * EXPERTS for _ in range(DENSE)] + [layer(rng, args.tokens) for _ in range(LAYERS - DENSE)]
    print('{"logical_count": [\n' + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]}")


if __name__ == "__main__":
    main()
