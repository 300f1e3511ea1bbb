#!/usr/bin/env python3
"""Writes a directory of reference placements with DeepSeek's own eplb.py, for eplb_oracle: random shapes and loads, and what
eplb.py makes of them or that it refuses them.

Needs torch, safetensors and eplb.py of the public repository deepseek-ai/EPLB; the tests only read what was written.

    make_eplb_oracle.py path/to/eplb.py OUT [--seed N] [--cases N] [--large] [--max-slots R] [--first N]
    eplb_oracle OUT

eplb.py is run as it is, but with every sort stable: torch's default sort is not on all machines, so that the order of equal
loads would depend on the machine. Every case is a shape, every kind a set of loads:

zipf, ints, ties: smooth fractions, whole numbers, few distinct whole numbers; fine: fractions over many magnitudes;
zeros, equal; big: counts of 2^24 and more as i64, which float32 rounds; signed: half negative; inf: some infinite, of either
sign; tiny: subnormal; flat: few distinct fractions; shuffled: the same fractions in every group, in another order, so that
nothing but the order of additions makes groups differ.

Writes into OUT, which must not exist:
eplb.json: a list of {"case", "kind", "L", "E", "R", "G", "N", "P", "seconds", "balancedness"}: layers, experts, slots, groups,
  nodes, ranks; seconds that eplb.py took; mean of mean / max rank load, where that is finite. Refused: "error", no tensors.
eplb.safetensors: <case>.<kind>.weight [L, E] f32 or i64; .phy2log [L, R], .log2phy [L, E, X], .logcnt [L, E] i32.

loads: counts of a file, {"logical_count": [layers][E]}, on the three shapes of LOADS, with --loads FILE and no other cases.

tests/golden/eplb, from case 100 on: --seed 7 --cases 0 --max-slots 240 --first 100; those below are of the same kind.
"""
import argparse
import importlib.util
import json
import math
import os
import random
import time

import torch
from safetensors.torch import save_file

# L, E, R, G, N, P. Named shapes first: published models, one group a node, one slot a rank, no redundancy, one expert's worth
# of everything, far more slots than experts, groups that do not divide over nodes; then what must be refused.
SHAPES = [
    (2, 12, 16, 4, 2, 8), (2, 64, 72, 8, 4, 8), (2, 256, 288, 8, 4, 32), (2, 256, 288, 1, 1, 32), (1, 384, 448, 1, 8, 64),
    (2, 32, 40, 4, 4, 8), (2, 24, 32, 8, 2, 32), (2, 48, 48, 6, 3, 12), (1, 1, 1, 1, 1, 1), (2, 1, 8, 1, 1, 4),
    (1, 6, 240, 2, 2, 8), (2, 60, 64, 7, 2, 8), (1, 172, 176, 4, 2, 8), (1, 2600, 2608, 4, 2, 8), (2, 60, 64, 12, 2, 4), (3, 9, 12, 9, 1, 4),
    (1, 8, 8, 8, 1, 1), (2, 40, 48, 40, 8, 8),
    (1, 12, 16, 5, 1, 8), (1, 12, 16, 4, 2, 5), (1, 12, 18, 4, 2, 8), (1, 12, 8, 4, 2, 8), (1, 12, 16, 4, 4, 2),
    (1, 7, 6, 3, 2, 2), (1, 8, 8, 1, 1, 16), (1, 8, 12, 0, 1, 4),
]
# With --large: many ranks, many slots a rank, many replicas.
LARGE = [(1, 512, 9216, 8, 4, 1024), (58, 256, 288, 8, 4, 32), (58, 256, 288, 1, 1, 32), (4, 256, 512, 1, 1, 256)]

# With --loads: R, G, N, P of published figures for DeepSeek-V3: decode on 32 ranks, global and by groups on 4 nodes, and on 64 ranks.
LOADS = [(288, 1, 1, 32), (288, 8, 4, 32), (320, 8, 8, 64)]


def weights_of(kind, L, E, G, rng):
    uniform = torch.rand(L, E, generator=rng)
    whole = torch.randint(0, 4000, (L, E), generator=rng)
    if kind == "zipf":
        order = torch.stack([torch.randperm(E, generator=rng) for _ in range(L)])
        return 1e4 / (order + 1).float() ** 1.1
    if kind == "ints":
        return whole.float()
    if kind == "ties":
        return (whole % 4).float()
    if kind == "fine":
        return torch.exp(torch.randn(L, E, generator=rng) * 3)
    if kind == "zeros":
        return torch.zeros(L, E)
    if kind == "equal":
        return torch.full((L, E), 0.1)
    if kind == "big":
        return (1 << 24) + whole + (whole % 7) * (1 << 33)
    if kind == "signed":
        return torch.randn(L, E, generator=rng) * 100 * (uniform > 0.1)
    if kind == "inf":
        infinite = torch.where(uniform < 0.06, -torch.inf, torch.inf)
        return torch.where((uniform - 0.06).abs() < 0.06, infinite, torch.randn(L, E, generator=rng))
    if kind == "tiny":
        return whole.float() * 1.4e-45
    if kind == "flat":
        return ((whole % 3) + 1).float() / 3
    if kind == "shuffled":
        values = torch.exp(torch.randn(L, E // G if G and E % G == 0 else E, generator=rng))
        groups = [values[:, torch.randperm(values.shape[1], generator=rng)] for _ in range(E // values.shape[1])]
        return torch.cat(groups, dim=1)
    raise ValueError(kind)


KINDS = ["zipf", "ints", "ties", "fine", "zeros", "equal", "big", "signed", "inf", "tiny", "flat", "shuffled"]


def random_shape(rng):
    """Most are accepted, hierarchical or global, some not."""
    N = rng.choice([1, 1, 2, 2, 3, 4, 5, 8])
    G = N * rng.choice([1, 1, 2, 3, 4]) if rng.random() < 0.7 else rng.randint(1, 9)
    E = G * rng.choice([1, 2, 3, 5, 7, 8, 9, 16, 17, 31, 32, 33, 40, 64, 70])
    P = N * rng.choice([1, 2, 3, 4, 8, 16])
    S = math.ceil(E / P) + rng.choice([0, 0, 1, 1, 2, 3, 10])
    shape = [rng.randint(1, 3), E, P * S, G, N, P]
    if rng.random() < 0.1:
        shape[rng.randint(1, 5)] += 1
    return tuple(shape)


def load_eplb(path):
    spec = importlib.util.spec_from_file_location("eplb", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sort = torch.Tensor.sort
    torch.Tensor.sort = lambda self, dim=-1, descending=False: sort(self, dim=dim, descending=descending, stable=True)
    return module


def balancedness(weight, phy2log, logcnt, P):
    weight = weight.float()
    slots = (weight / logcnt).gather(-1, phy2log)
    ranks = slots.view(len(slots), P, -1).sum(-1)
    return (ranks.mean(-1) / ranks.max(-1).values).mean().item()


def run_case(eplb, entry, weight, tensors):
    name = f"{entry['case']}.{entry['kind']}"
    begin = time.perf_counter()
    try:
        maps = eplb.rebalance_experts(weight, entry["R"], entry["G"], entry["N"], entry["P"])
    except Exception as error:  # whatever stops it: assertions, divisions by zero, torch's own
        entry["error"] = repr(error)[:200]
        return
    entry["seconds"] = time.perf_counter() - begin
    balance = balancedness(weight, maps[0], maps[2], entry["P"])
    if math.isfinite(balance):
        entry["balancedness"] = balance
    tensors[f"{name}.weight"] = weight.contiguous()
    for key, value in zip(("phy2log", "log2phy", "logcnt"), maps):
        tensors[f"{name}.{key}"] = value.to(torch.int32).contiguous()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("eplb_py")
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=20, help="random shapes after the named ones")
    parser.add_argument("--large", action="store_true", help="also a few large shapes (minutes)")
    parser.add_argument("--max-slots", type=int, default=1 << 24, help="leave out shapes with more")
    parser.add_argument("--loads", metavar="FILE", help="only these counts, on the shapes of published figures")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    args = parser.parse_args()
    eplb = load_eplb(args.eplb_py)
    os.makedirs(args.out)
    torch.set_num_threads(1)  # as eplb_oracle; tensors this small gain nothing by more
    shape_rng, rng = random.Random(args.seed), torch.Generator().manual_seed(args.seed)
    shapes = SHAPES + (LARGE if args.large else []) + [random_shape(shape_rng) for _ in range(args.cases)]
    shapes = [shape for shape in shapes if shape[2] <= args.max_slots] if not args.loads else []
    entries, tensors = [], {}
    for case, (L, E, R, G, N, P) in enumerate(shapes, args.first):
        for kind in KINDS:
            entry = dict(case=case, kind=kind, L=L, E=E, R=R, G=G, N=N, P=P)
            run_case(eplb, entry, weights_of(kind, L, E, G, rng), tensors)
            entries.append(entry)
            if "error" in entry:  # the shape's, whatever the loads
                break
    for case, (R, G, N, P) in enumerate(LOADS if args.loads else [], args.first):
        with open(args.loads) as file:
            weight = torch.tensor(json.load(file)["logical_count"], dtype=torch.float32)
        L, E = weight.shape
        entries.append(dict(case=case, kind="loads", L=L, E=E, R=R, G=G, N=N, P=P))
        run_case(eplb, entries[-1], weight, tensors)
    save_file(tensors, os.path.join(args.out, "eplb.safetensors"))
    with open(os.path.join(args.out, "eplb.json"), "w") as file:
        file.write("[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n")
    refused = sum("error" in entry for entry in entries)
    print(f"{args.out}: {len(entries)} cases, {refused} of them refused by eplb.py")


if __name__ == "__main__":
    main()
