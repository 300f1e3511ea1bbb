"""Computes with numpy what `waybill stats` and `waybill diff` say of two dumps, and compares.

usage: check_numbers.py WAYBILL A B        exit 0: the same, 1: not, 77: a package is not there
"""
import json
import math
import subprocess
import sys

import msgpack
import numpy as np

from read_dump import indexer_rows, read


def load(path):
    header = next(msgpack.Unpacker(open(path, "rb"), max_buffer_size=0))
    records = {}
    for record, rows in read(path):
        record["rows"], record["ids"] = rows, np.frombuffer(record["tokens"], "<u4")
        for key in ("logprobs", "sampling_logprobs"):
            record[key] = np.frombuffer(record[key], "<f4").astype(np.float64) if key in record else None
        run = record.get("indexer")
        record["chosen"] = {run["start"] + i: row for i, row in enumerate(indexer_rows(run, header))} if run else {}
        records[record["rid"]] = record
    return header["model"], records


def columns_of(model):
    indexer = model.get("indexer", {"layers": [], "source": []})
    return [layer for layer, source in zip(indexer["layers"], indexer["source"]) if layer == source]


def near(found, wanted, what):
    """wanted: None for a mean of nothing."""
    if wanted is None:
        assert found is None, (what, found)
        return
    assert isinstance(found, (int, float)) and math.isclose(found, wanted, rel_tol=2e-8, abs_tol=1e-12), (what, found, wanted)


def sets(ids):
    return np.sort(ids, axis=-1)


def check_stats_of_indexers(found, columns, records):
    assert ("indexers" in found) == (len(columns) > 0)
    if not columns:
        return
    assert found["indexers"]["records"] == sum("indexer" in r for r in records.values())
    assert [i["layer"] for i in found["indexers"]["layers"]] == columns
    for s, i in enumerate(found["indexers"]["layers"]):
        cells = [row[s] for r in records.values() for row in r["chosen"].values()]
        lists = [c for c in cells if c]
        assert (i["rows"], i["empty"]) == (len(cells), len(cells) - len(lists)) and lists, i
        near(i["mean_listed"], np.mean([len(c) for c in cells]), "listed")
        near(i["mean_span"], np.mean([c[-1] - c[0] + 1 for c in lists]), "span")


def check_stats(waybill, path, ranks, top):
    model, records = load(path)
    L, E, K = len(model["moe_layers"]), model["num_experts"], model["top_k"]
    found = json.loads(subprocess.check_output([waybill, "stats", "--json", f"--ranks={ranks}", f"--top={top}", path]))
    counts, pairs, repeats = np.zeros((L, E), int), 0, np.zeros(L, int)
    for record in records.values():
        for position, row in record["rows"].items():
            np.add.at(counts, (np.arange(L)[:, None], row), 1)
            if position - 1 in record["rows"]:
                pairs += 1
                repeats += (sets(row) == sets(record["rows"][position - 1])).all(axis=1)
    rows = sum(len(r["rows"]) for r in records.values())
    check_stats_of_indexers(found, columns_of(model), records)
    assert found["valid_rows"] == rows and found["rows_after_rows"] == pairs and found["ranks"] == ranks, found
    for l, layer in enumerate(found["layers"]):
        c, total = counts[l], rows * K
        assert layer["layer"] == model["moe_layers"][l] and layer["counts"] == c.tolist() and layer["choices"] == total
        near(layer["repeats"], repeats[l] / pairs if pairs else 0, "repeats")
        of_rank = np.array([c[E * r // ranks:E * (r + 1) // ranks].sum() for r in range(ranks)])
        near(layer["balancedness"], of_rank.mean() / of_rank.max() if of_rank.max() else 1, "balancedness")
        p = c[c > 0] / total
        near(layer["entropy"], -(p * np.log(p)).sum() / math.log(E), "entropy")
        near(layer["max_over_mean"], c.max() / c.mean(), "max over mean")
        bins = np.histogram(c[c > 0] / c.mean(), [0, 0.25, 0.5, 1, 2, 4, np.inf])[0]
        assert layer["histogram"] == [int((c == 0).sum())] + bins.tolist(), (layer["histogram"], bins)
        best = sorted(range(E), key=lambda e: (-c[e], e))[:top]
        assert layer["top"] == best and layer["unused"] == (c == 0).sum(), (layer["top"], best)


def version_of(record, position):
    return next((v for start, end, v in record.get("spans", []) if start <= position < end), None)


class Sums:
    def __init__(self):
        self.rows = self.same = self.exact = 0
        self.overlap = 0.0

    def add(self, a, b):  # ids [.., K]
        a, b = np.atleast_2d(a), np.atleast_2d(b)
        self.rows += 1
        self.exact += bool((a == b).all())
        self.same += bool((sets(a) == sets(b)).all())
        self.overlap += np.mean([len(set(x) & set(y)) / len(x) for x, y in zip(a.tolist(), b.tolist())])

    def check(self, found, what):
        assert found["rows"] == self.rows, (what, found, self.rows)
        for key in ("overlap", "same", "exact"):
            near(found[key], getattr(self, key) / self.rows if self.rows else None, (what, key))


def check_kl(found, a, b, what):
    log_r = np.concatenate(a + [[]]) - np.concatenate(b + [[]])
    assert found["tokens"] == len(log_r), (what, found, len(log_r))
    ratio, n = np.exp(-log_r), len(log_r)
    near(found["k1"], log_r.sum() / n if n else None, what)
    near(found["k3"], (ratio - 1 + log_r).sum() / n if n else None, what)
    near(found["ratio_outside"], ((ratio < 0.5) | (ratio > 2)).sum() / n if n else None, what)


def compare_choices(a, b, p, to, columns):
    x, y = a["chosen"].get(p), b["chosen"].get(p)
    to["only_a"] += x is not None and y is None
    to["only_b"] += y is not None and x is None
    if x is None or y is None:
        return
    to["rows"] += 1
    for s, (own, other) in enumerate(zip(x, y)):
        to["same"][s] += own == other
        to["overlap"][s] += len(set(own) & set(other)) / len(own) if own else 1
        if own != other and to["first"] is None:
            to["first"] = {"rid": a["rid"], "position": p, "layer": columns[s]}


def compare(model, a, b, total):
    """Adds up one pair of records; the first differences, or None."""
    shorter = min(len(a["ids"]), len(b["ids"]))
    different = np.flatnonzero(a["ids"][:shorter] != b["ids"][:shorter])
    n = int(different[0]) if len(different) else shorter
    same_tokens = n == len(a["ids"]) == len(b["ids"])
    total["same_tokens"] += same_tokens
    total["after"] += sum(p >= n for r in (a, b) for p in r["rows"]) if not same_tokens else 0
    first = max(a["prompt_len"], b["prompt_len"])
    for key in ("logprobs", "sampling_logprobs"):
        if a[key] is not None and b[key] is not None and first < n:
            total[key][0].append(a[key][first - a["prompt_len"]:n - a["prompt_len"]])
            total[key][1].append(b[key][first - b["prompt_len"]:n - b["prompt_len"]])
    row_difference = None
    for p in range(n):
        compare_choices(a, b, p, total["indexers"], columns_of(model))
        x, y = a["rows"].get(p), b["rows"].get(p)
        total["only_a"] += x is not None and y is None
        total["only_b"] += y is not None and x is None
        if x is None or y is None:
            continue
        total["all"].add(x, y)
        bucket = 0 if p < 16 else 2 ** int(math.log2(p))
        total["positions"].setdefault(bucket, Sums()).add(x, y)
        total["versions"].setdefault((version_of(a, p), version_of(b, p)), Sums()).add(x, y)
        for l in range(len(x)):
            total["layers"][l].add(x[l], y[l])
        if row_difference is None and (x != y).any():
            l = int(np.flatnonzero((x != y).any(axis=1))[0])
            row_difference = {"position": p, "layer": model["moe_layers"][l], "a": x[l].tolist(), "b": y[l].tolist()}
    at = lambda r: int(r["ids"][n]) if n < len(r["ids"]) else None
    return None if same_tokens else {"position": n, "a": at(a), "b": at(b)}, row_difference


def check_diff_of_indexers(found, total, columns):
    assert (found is not None) == (len(columns) > 0)
    if not columns:
        return
    rows = total["rows"]
    assert (found["rows"], found["rows_only_a"], found["rows_only_b"]) == (rows, total["only_a"], total["only_b"]) and rows, found
    assert found["first_difference"] == total["first"], (found, total)
    assert [i["layer"] for i in found["layers"]] == columns
    for s, i in enumerate(found["layers"]):
        assert i["rows"] == rows
        near(i["overlap"], total["overlap"][s] / rows, "overlap of an indexer")
        near(i["same"], total["same"][s] / rows, "same choices of an indexer")


def check_diff(waybill, path_a, path_b):
    model, a = load(path_a)
    _, b = load(path_b)
    found = json.loads(subprocess.check_output([waybill, "diff", "--json", path_a, path_b]))
    total = {"same_tokens": 0, "after": 0, "only_a": 0, "only_b": 0, "all": Sums(), "positions": {}, "versions": {},
             "indexers": {"rows": 0, "only_a": 0, "only_b": 0, "same": np.zeros(9), "overlap": np.zeros(9), "first": None},
             "layers": [Sums() for _ in model["moe_layers"]], "logprobs": ([], []), "sampling_logprobs": ([], [])}
    firsts = [None, None]
    both = [rid for rid in a if rid in b]
    for rid in both:
        for i, place in enumerate(compare(model, a[rid], b[rid], total)):
            if firsts[i] is None and place is not None:
                firsts[i] = {"rid": rid, **place}
    assert found["records"] == {"both": len(both), "only_a": len(a) - len(both), "only_b": len(b) - len(both),
                                "same_tokens": total["same_tokens"]}, found["records"]
    assert (found["rows_only_a"], found["rows_only_b"], found["rows_not_compared"]) == \
        (total["only_a"], total["only_b"], total["after"]), found
    assert (found["first_token_difference"], found["first_difference"]) == tuple(firsts), (found, firsts)
    check_diff_of_indexers(found.get("indexers"), total["indexers"], columns_of(model))
    total["all"].check(found, "all")
    for l, layer in enumerate(found["layers"]):
        assert layer["layer"] == model["moe_layers"][l]
        total["layers"][l].check(layer, "layer")
    assert [p["from"] for p in found["positions"]] == sorted(total["positions"])
    for p in found["positions"]:
        assert p["to"] == (2 * p["from"] if p["from"] else 16)
        total["positions"][p["from"]].check(p, "position")
    order = lambda v: (v is not None, v or 0)
    assert [(v["a"], v["b"]) for v in found["versions"]] == \
        sorted(total["versions"], key=lambda pair: (order(pair[0]), order(pair[1])))
    for v in found["versions"]:
        total["versions"][v["a"], v["b"]].check(v, "version")
    check_kl(found["kl"], *total["logprobs"], "kl")
    check_kl(found["kl_sampling"], *total["sampling_logprobs"], "kl_sampling")


if __name__ == "__main__":
    for dump in sys.argv[2:4]:
        experts = load(dump)[0]["num_experts"]
        for ranks, top in ((1, 1), (4, 5), (7, 3), (experts, min(experts, 64))):
            check_stats(sys.argv[1], dump, ranks, top)
    check_diff(sys.argv[1], sys.argv[2], sys.argv[3])
    check_diff(sys.argv[1], sys.argv[3], sys.argv[2])
    check_diff(sys.argv[1], sys.argv[2], sys.argv[2])
