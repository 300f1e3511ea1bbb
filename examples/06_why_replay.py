#!/usr/bin/env python3
"""What replay is for, on a tiny model whose rollout has weights quantised to few bits: how far the policy gradient is from that of
the model which generated the text, with and without replay; and what training makes of it, beside what else is done about the
mismatch. Ends with two tables over all seeds, and a plot of the first.

usage: 06_why_replay.py WAYBILL_GRPO OUT [--seeds N] [--steps N] [--bits N]
  WAYBILL_GRPO   the program, as build/bin/waybill-grpo
  OUT            a folder for the base model, a run for each way and seed, results.json and why_replay.svg; runs that are there
                 whole are not done again
Needs numpy. Five seeds of 80 steps take about ten minutes of one core.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys

import numpy as np

WAYS = {  # name: options, and the colour of its bar
    "replay off": (["--replay", "off"], "#666666"),
    "off, TIS": (["--replay", "off", "--tis-cap", "2"], "#d55e00"),
    "off, GSPO": (["--replay", "off", "--ratio", "sequence"], "#cc79a7"),
    "R2 (record)": (["--replay", "record"], "#e69f00"),
    "R3 (rollout)": (["--replay", "rollout"], "#0072b2"),
}
GRADIENT_WAYS = ("replay off", "R2 (record)", "R3 (rollout)")
ROLLOUTS = {"bf16": ["--rollout-dtype", "bf16"]} | {f"{bits} bits": ["--rollout-bits", str(bits)] for bits in (8, 6, 4)}
LAST = 10  # steps whose rewards are a run's result


def run(program, arguments, log):
    # One process that looks for no mpirun.
    environment = dict(os.environ, OMPI_MCA_ess_singleton_isolated="1", OMP_NUM_THREADS="1")
    with open(log, "w") as file:
        try:
            status = subprocess.run([program, *arguments], stdout=file, stderr=file, env=environment).returncode
        except OSError as error:
            sys.exit(f"{program}: cannot be run: {error.strerror}")
        if status != 0:
            sys.exit(f"{program} {' '.join(arguments)}: failed, see {log}")


# ---- the gradient ------------------------------------------------------------------------------------------------------------


def tensors(path):  # of a safetensors file of f32
    data = open(path, "rb").read()
    (n,) = struct.unpack("<Q", data[:8])
    listed = {name: t for name, t in json.loads(data[8 : 8 + n]).items() if name != "__metadata__"}
    return {
        name: np.frombuffer(data[8 + n :][slice(*t["data_offsets"])], "<f4").reshape(t["shape"]) for name, t in listed.items()
    }


def rounded(name, x, rollout):
    """A tensor as the engine has it: the nearest bf16; or the nearest multiple of a row's largest value over 2^(bits - 1) - 1."""
    if x.ndim == 1:
        return x
    if rollout == "bf16":
        bits = x.view("<u4")
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype("<u4").view("<f4")
    if "layers." not in name or ".gate.weight" in name:
        return x
    scale = np.abs(x).max(1, keepdims=True) / np.float32(2 ** (int(rollout.split()[0]) - 1) - 1)
    return (np.rint(x / scale) * scale).astype("<f4")


def engines_model(base, folder, rollout):
    """The model that the engine has, as a checkpoint: rounded again by the engine, it stays what it is."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    header, data = {}, b""
    for name, x in tensors(os.path.join(base, "model.safetensors")).items():
        x = rounded(name, x, rollout)
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [len(data), len(data) + x.nbytes]}
        data += x.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def gradient(a, model, seed, options):
    """Of one batch's loss, by the first moments of AdamW after one update that changes next to nothing; and what was measured."""
    folder = os.path.join(a.out, "gradient")
    shutil.rmtree(folder, ignore_errors=True)
    fixed = [
        "--model",
        model,
        "--out",
        folder,
        "--steps",
        "1",
        "--updates",
        "1",
        "--grad-clip",
        "0",
        "--lr",
        "1e-9",
        "--seed",
        str(seed),
    ]
    run(a.waybill_grpo, [*fixed, "--threads", "1", "--no-dump", "--quiet", *options], folder + ".log")
    moments = tensors(os.path.join(folder, "checkpoint", "trainer", "optimizer-0.safetensors"))
    (measured,) = metrics(folder)
    return np.concatenate([moments[name].ravel() for name in sorted(moments) if name.endswith(".exp_avg")]).astype(
        np.float64
    ), measured


def gradient_table(a, base):
    ways = [way for way in WAYS if way in GRADIENT_WAYS]
    print("gradient of one batch: distance from that of the model which generated it, as a share of its norm\n")
    print(f"| rollout | routed differently | {' | '.join(ways)} |\n|---|---|{'---|' * len(ways)}")
    engines, all_errors = os.path.join(a.out, "engines_model"), {}
    for rollout, options in ROLLOUTS.items():
        engines_model(base, engines, rollout)
        errors, differ = all_errors.setdefault(rollout, {way: [] for way in ways}), []
        for seed in range(1, a.seeds + 1):
            wanted, of_wanted = gradient(a, engines, seed, ["--replay", "rollout", *options])
            for way in ways:
                found, measured = gradient(a, base, seed, [*WAYS[way][0], *options])
                assert measured["entropy"] == of_wanted["entropy"], "not the same batch"
                errors[way].append(float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)))
                if way == "replay off":
                    differ.append(measured["fidelity"]["routed_differently"])
        cells = [f"{np.mean(errors[way]):.3f} ({np.min(errors[way]):.3f} to {np.max(errors[way]):.3f})" for way in ways]
        print(f"| {rollout} | {100 * np.mean(differ):.0f} % | {' | '.join(cells)} |", flush=True)
    return all_errors


# ---- training ----------------------------------------------------------------------------------------------------------------


def metrics(folder):
    path = os.path.join(folder, "metrics.jsonl")
    return [json.loads(line) for line in open(path)] if os.path.exists(path) else []


def train(a, base, way, seed):
    options, _ = WAYS[way]
    folder = os.path.join(a.out, f"{re.sub(r'[^A-Za-z0-9]+', '_', way).strip('_')}-{a.bits}bits-{seed}")
    if len(metrics(folder)) < a.steps:
        fixed = ["--model", base, "--out", folder, "--resume", "--steps", a.steps, "--seed", seed, "--rollout-bits", a.bits]
        fixed += ["--lr", "3e-4", "--updates", "8", "--threads", "1", "--no-dump", "--checkpoint-every", "0", "--quiet"]
        run(a.waybill_grpo, [str(word) for word in fixed + options], folder + ".log")
    return metrics(folder)


# ---- the plot ----------------------------------------------------------------------------------------------------------------


def plot(gradients, seeds):
    """An SVG of the gradients' errors: a bar for the mean of the seeds, a line from the least to the largest, on a logarithmic scale."""
    width, height, left, right, top, bottom, low = 720, 320, 60, 20, 60, 40, 0.01
    y = lambda value: top + (height - top - bottom) * np.log10(max(value, low)) / np.log10(low)
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{left}" y="20" font-size="14">Error of the policy gradient by the rollout\'s weights: mean and range of {seeds} seeds</text>',
    ]
    for tick in (1, 0.3, 0.1, 0.03, 0.01):
        svg.append(f'<line x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#dddddd"/>')
        svg.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{100 * tick:.0f} %</text>')
    for i, way in enumerate(GRADIENT_WAYS):
        svg.append(f'<rect x="{left + 130 * i}" y="32" width="12" height="12" fill="{WAYS[way][1]}"/>')
        svg.append(f'<text x="{left + 130 * i + 18}" y="42">{way}</text>')
    group = (width - left - right) / len(gradients)
    bar = group / (len(GRADIENT_WAYS) + 1)
    for g, (rollout, errors) in enumerate(gradients.items()):
        svg.append(f'<text x="{left + group * (g + 0.5):.1f}" y="{height - 16}" text-anchor="middle">{rollout}</text>')
        for i, way in enumerate(GRADIENT_WAYS):
            x, mean = left + group * g + bar * (i + 0.5), float(np.mean(errors[way]))
            svg.append(
                f'<rect x="{x:.1f}" y="{y(mean):.1f}" width="{bar * 0.9:.1f}" height="{y(low) - y(mean):.1f}" fill="{WAYS[way][1]}"/>'
            )
            ends = f'y1="{y(min(errors[way])):.1f}" y2="{y(max(errors[way])):.1f}"'
            svg.append(f'<line x1="{x + bar * 0.45:.1f}" x2="{x + bar * 0.45:.1f}" {ends} stroke="#000000"/>')
    return "\n".join(svg + ["</svg>", ""])


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1])
    parser.add_argument("waybill_grpo")
    parser.add_argument("out")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--bits", type=int, default=4)
    a = parser.parse_args()
    os.makedirs(a.out, exist_ok=True)
    base = os.path.join(a.out, "base")
    if not os.path.exists(os.path.join(base, "config.json")):
        run(a.waybill_grpo, ["--make-base", base, "--warmup-steps", "80", "--threads", "1", "--quiet"], base + ".log")
    gradients = gradient_table(a, base)
    with open(os.path.join(a.out, "why_replay.svg"), "w") as file:
        file.write(plot(gradients, a.seeds))
    results, fidelity = {way: [] for way in WAYS}, {way: [] for way in WAYS}
    for seed in range(1, a.seeds + 1):
        for way in WAYS:
            lines = train(a, base, way, seed)[: a.steps]
            results[way].append([line["reward"] for line in lines])
            fidelity[way].append(
                [statistics.fmean(line["fidelity"][key] for line in lines) for key in ("kl_k3", "routed_differently")]
            )
            print(f"seed {seed}, {way}: {statistics.fmean(results[way][-1][-LAST:]):.3f}", file=sys.stderr, flush=True)
    with open(os.path.join(a.out, "results.json"), "w") as file:
        json.dump({"gradients": gradients, "bits": a.bits, "steps": a.steps, "rewards": results}, file)
    off = [statistics.fmean(rewards[-LAST:]) for rewards in results["replay off"]]
    first = statistics.fmean(rewards[0] for rewards in results["replay off"])
    print(f"\ntraining: reward of the first step {first:.3f}; of the last {LAST}, over {a.seeds} seeds:\n")
    print(
        "| | mean | standard deviation | seeds better than off | KL(rollout \\|\\| trainer) | routed differently |\n|---|---|---|---|---|---|"
    )
    for way in WAYS:
        ends = [statistics.fmean(rewards[-LAST:]) for rewards in results[way]]
        better = "" if way == "replay off" else f"{sum(e > o for e, o in zip(ends, off))} of {len(ends)}"
        kl, differ = (statistics.fmean(column) for column in zip(*fidelity[way]))
        deviation = statistics.stdev(ends) if len(ends) > 1 else 0
        print(f"| {way} | {statistics.fmean(ends):.3f} | {deviation:.3f} | {better} | {kl:.3f} | {100 * differ:.0f} % |")


main()
