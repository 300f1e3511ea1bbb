"""Reads dumps with msgpack, numpy and zstandard alone and compares them with what `waybill cat` prints.

usage: read_dump.py WAYBILL DUMP ...        exit 0: the same, 1: not, 77: a package is not there
A DUMP is a file, or a directory of them. The lines between the marks are those of the README.
"""
import glob
import json
import os
import subprocess
import sys

try:
    import msgpack
    import numpy as np
    import zstandard
except ImportError as missing:
    print("skipped:", missing)
    sys.exit(77)


# README begin
def read(path, more={}):  # each record of a file, and {position: expert ids [layer][choice]} of its valid rows
    objects, unzstd = msgpack.Unpacker(open(path, "rb"), max_buffer_size=0), zstandard.ZstdDecompressor().decompress
    codecs = {"raw": lambda chunk, header: chunk, "zstd": lambda chunk, header: unzstd(chunk)} | more
    header, bases, listed = next(objects, None), {}, lambda x: x if isinstance(x, list) else [x]
    if header is None:  # of a rank that died
        return print(f"{path}: skipped, it ends before its header does", file=sys.stderr)
    shape = -1, len(header["model"]["moe_layers"]), header["model"]["top_k"]
    if isinstance(shape[2], list):  # layers that differ: a row is their choices one after the other
        shape = -1, sum(shape[2])
    for record in (o for o in objects if "rid" in o):
        rows, prefix = {}, record.get("prefix")  # a group's prompt is stored once, in the record of this rid
        for run in listed(record.get("routes", [])):
            if prefix and not rows:
                rows = {p: bases[prefix["rid"]][p] for p in range(run["start"] - prefix["rows"], run["start"])}
            decode = codecs[run["codec"]]
            data = b"".join(decode(c, header) if c else c for c in listed(run["data"]))
            ids = np.frombuffer(data, "<u2" if header["dtype"] == "u16" else "u1").reshape(shape)
            valid = np.unpackbits(np.frombuffer(run.get("valid", b"\xff" * len(ids)), "u1"), bitorder="little")
            rows |= {run["start"] + r: ids[r] for r in range(len(ids)) if valid[r]}
        bases |= {} if prefix else {record["rid"]: rows}
        yield record, rows
# README end


def unpack(chunk, header):  # a chunk of codec packed
    model = header["model"]
    L, E, K = len(model["moe_layers"]), model["num_experts"], model["top_k"]
    content = np.frombuffer(zstandard.ZstdDecompressor().decompress(chunk), "u1")
    experts = np.argsort(content[:L * E].reshape(L, E), axis=1, kind="stable")
    symbols = content[L * E:].reshape(K, -1, L)
    ids = np.empty((symbols.shape[1], L, K), "u1")
    for layer in range(L):
        before = list(range(K))
        for row in range(len(ids)):
            candidates = before + [rank for rank in range(E) if rank not in before]
            before = [candidates.pop(symbols[k, row, layer]) for k in range(K)]
            ids[row, layer] = experts[layer, before]
    return ids.tobytes()


def indexer_rows(run, header):  # [row][layer that has an indexer of its own] of positions
    indexer = header["model"]["indexer"]
    columns = sum(layer == source for layer, source in zip(indexer["layers"], indexer["source"]))
    chunks = run["data"] if isinstance(run["data"], list) else [run["data"]]
    unzstd = zstandard.ZstdDecompressor().decompress
    data = b"".join(unzstd(c) if run["codec"] == "zstd" else c for c in chunks)
    numbers, shift, number = [], 0, 0
    for byte in data:
        number, shift = number | (byte & 127) << shift, shift + 7
        if byte < 128:
            numbers.append(number)
            number = shift = 0
    numbers, rows = iter(numbers), []
    for _ in range(run["rows"] * columns):
        head = next(numbers)
        steps = [next(numbers) + (i > 0) for i in range(head // 2)] if head % 2 == 0 else []
        rows.append(np.cumsum(steps, dtype=int).tolist() if steps else list(range(head // 2)))
    assert next(numbers, None) is None
    return [rows[r * columns : (r + 1) * columns] for r in range(run["rows"])]


def header_of(path):
    return next(msgpack.Unpacker(open(path, "rb"), max_buffer_size=0))


def files_of(dump):
    return sorted(glob.glob(os.path.join(dump, "*.wbr"))) if os.path.isdir(dump) else [dump]


def as_printed(number):
    """An f32 with the digits that it has, as `waybill cat` prints it."""
    return float("%.9g" % number)


def compare(waybill, dump):
    header = header_of(files_of(dump)[0])
    mine = {record["rid"]: (record, rows) for path in files_of(dump) for record, rows in read(path, {"packed": unpack})}
    lines = subprocess.run([waybill, "cat", "--json", dump], check=True, capture_output=True).stdout
    theirs = [json.loads(line) for line in lines.splitlines()]
    assert [r["rid"] for r in theirs] == list(mine)
    for record in theirs:
        obj, rows = mine[record["rid"]]
        for key in ("group", "sample", "prompt_len", "finish"):
            assert record[key] == obj[key], (record["rid"], key)
        assert record["spans"] == obj.get("spans", []), record["rid"]
        assert record["tokens"] == np.frombuffer(obj["tokens"], "<u4").tolist(), record["rid"]
        assert (record["logprobs"] is None) == ("logprobs" not in obj), record["rid"]
        logprobs = np.frombuffer(obj.get("logprobs", b""), "<f4")
        assert np.array_equal(np.array(record["logprobs"] or [], "<f4"), logprobs), record["rid"]
        assert record.get("sampling", {}) == {k: as_printed(v) for k, v in obj.get("sampling", {}).items()}, record["rid"]
        if "sampling_logprobs" in obj:
            assert np.array(record["sampling_logprobs"], "<f4").tobytes() == obj["sampling_logprobs"], record["rid"]
        if "sampling_mask" in obj:
            ids, ends = (np.frombuffer(obj["sampling_mask"][key], "<u4") for key in ("ids", "ends"))
            assert record["sampling_mask"] == [kept.tolist() for kept in np.split(ids, ends[:-1])], record["rid"]
        assert ("sampling_mask" in record) == ("sampling_mask" in obj), record["rid"]
        assert ("indexer" in record) == ("indexer" in obj), record["rid"]
        if "indexer" in obj:
            assert record["indexer"]["start"] == obj["indexer"]["start"], record["rid"]
            assert record["indexer"]["rows"] == indexer_rows(obj["indexer"], header), record["rid"]
        shown = {run["start"] + i: row for run in record["routes"] for i, row in enumerate(run["rows"]) if row}
        top_k = header["model"]["top_k"]
        if isinstance(top_k, list):
            rows = {p: [part.tolist() for part in np.split(ids, np.cumsum(top_k[:-1]))] for p, ids in rows.items()}
            assert shown == rows, record["rid"]
            continue
        assert shown == {position: ids.tolist() for position, ids in rows.items()}, record["rid"]
        assert rows or "routes" not in obj, record["rid"]
    assert theirs
    return len(theirs)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    for name in sys.argv[2:]:
        print(name.rsplit("/", 1)[-1], compare(sys.argv[1], name), "records agree")
