"""Reads a dump with msgpack and numpy alone and compares it with what `waybill cat` prints.

usage: read_dump.py WAYBILL DUMP.wbr ...        exit 0: the same, 1: not, 77: msgpack or numpy is not there
Files must have rows of codec raw in one bin a run (numpy knows no zstd).
"""
import json
import subprocess
import sys

try:
    import msgpack
    import numpy as np
except ImportError as missing:
    print("skipped:", missing)
    sys.exit(77)


def read(path, use):
    # README begin
    for obj in msgpack.Unpacker(open(path, "rb"), max_buffer_size=0):
        if "model" in obj:  # the header comes first
            shape = -1, len(obj["model"]["moe_layers"]), obj["model"]["top_k"]
            dtype = {"u8": "<u1", "u16": "<u2"}[obj["dtype"]]
        if "rid" in obj:  # a record
            tokens = np.frombuffer(obj["tokens"], "<u4")
            for run in obj["routes"] if isinstance(obj["routes"], list) else [obj["routes"]]:
                ids = np.frombuffer(run["data"], dtype).reshape(shape)  # [row][layer][slot]
                use(obj, tokens, run, ids)  # row r is of position run["start"] + r
    # README end


def positions(path):
    """rid -> (record, tokens, {position: ids [L][K]})"""
    found = {}

    def use(record, tokens, run, ids):
        rows = found.setdefault(record["rid"], (record, tokens, {}))[2]
        if "prefix" in record and not rows:  # the rows before the first run are another record's
            base = found[record["prefix"]["rid"]][2]
            for position in range(run["start"] - record["prefix"]["rows"], run["start"]):
                rows[position] = base[position]
        bits = np.ones(run["rows"]) if "valid" not in run else np.unpackbits(
            np.frombuffer(run["valid"], "u1"), bitorder="little")
        for r in range(run["rows"]):
            if bits[r]:
                rows[run["start"] + r] = ids[r].tolist()

    read(path, use)
    return found


def as_printed(number):
    """An f32 with the digits that it has, as `waybill cat` prints it."""
    return float("%.9g" % number)


def compare(waybill, path):
    mine = positions(path)
    lines = subprocess.run([waybill, "cat", "--tokens", "--routes", path], check=True, capture_output=True).stdout
    theirs = [json.loads(line) for line in lines.splitlines()]
    assert [r["rid"] for r in theirs] == list(mine)
    for record in theirs:
        obj, tokens, rows = mine[record["rid"]]
        for key in ("group", "sample", "prompt_len", "finish", "spans"):
            assert record[key] == obj[key], (record["rid"], key)
        assert record["tokens"] == tokens.tolist(), record["rid"]
        logprobs = np.array(record["logprobs"], "<f4")
        assert logprobs.tobytes() == obj["logprobs"], record["rid"]
        assert record.get("sampling", {}) == {k: as_printed(v) for k, v in obj.get("sampling", {}).items()}, record["rid"]
        if "sampling_logprobs" in obj:
            assert np.array(record["sampling_logprobs"], "<f4").tobytes() == obj["sampling_logprobs"], record["rid"]
        if "sampling_mask" in obj:
            ids, ends = (np.frombuffer(obj["sampling_mask"][key], "<u4") for key in ("ids", "ends"))
            assert record["sampling_mask"] == [kept.tolist() for kept in np.split(ids, ends[:-1])], record["rid"]
        assert ("sampling_mask" in record) == ("sampling_mask" in obj), record["rid"]
        shown = {run["start"] + i: row for run in record["routes"] for i, row in enumerate(run["rows"]) if row}
        assert shown == rows and rows, record["rid"]
    assert theirs
    return len(theirs)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        print(name.rsplit("/", 1)[-1], compare(sys.argv[1], name), "records agree")
