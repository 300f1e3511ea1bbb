"""Reads what waybill-grpo --tensorboard wrote, by the format's own description and nothing of ours, and compares every number with
metrics.jsonl; then once more as TensorBoard's own reader has it, where that package is there.

usage: read_events.py OUT        exit 0: the same, 1: not
"""

import glob
import json
import struct
import sys

TABLE = []
for n in range(256):
    for _ in range(8):
        n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
    TABLE.append(n)


def masked_crc(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frames(path):  # of a TFRecord file
    data, at = open(path, "rb").read(), 0
    while at < len(data):
        (length, check) = struct.unpack_from("<QI", data, at)
        assert check == masked_crc(data[at : at + 8]), (path, at, "checksum of the length")
        body = data[at + 12 : at + 12 + length]
        (check,) = struct.unpack_from("<I", data, at + 12 + length)
        assert len(body) == length and check == masked_crc(body), (path, at, "checksum of the event")
        yield body
        at += 16 + length


def fields(data):  # (number, value) of a protocol buffer
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            value = varint()
        else:
            size = {1: 8, 5: 4}.get(kind) or varint()
            value, at = data[at : at + size], at + size
            assert len(value) == size, "a field that is cut"
        yield key >> 3, value


def read(folder):  # {tag: {step: value}} over all files, and how many there are
    found, paths = {}, sorted(glob.glob(folder + "/*"))
    for path in paths:
        assert "tfevents" in path, path
        for i, event in enumerate(map(dict, map(list, map(fields, frames(path))))):
            step = event.get(2, 0)
            if i == 0:
                assert event[3] == b"brain.Event:2", event
            if 7 in event and dict(fields(event[7])) == {1: 1}:  # a start: what was said of its steps is void
                for values in found.values():
                    for late in [s for s in values if s >= step]:
                        del values[late]
            for number, value in fields(event.get(5, b"")):
                value = dict(fields(value))
                assert number == 1 and sorted(value) == [1, 2], value
                values = found.setdefault(value[1].decode(), {})
                assert step not in values, (path, step, value)
                values[step] = struct.unpack("<f", value[2])[0]
    return {tag: values for tag, values in found.items() if values}, len(paths)


def expected(path):  # the same of metrics.jsonl
    found = {}
    for line in map(json.loads, open(path)):
        step = line.pop("step")
        for key, value in line.items():
            for tag, number in (
                [("step/" + key, value)] if not isinstance(value, dict) else [(key + "/" + k, v) for k, v in value.items()]
            ):
                if not isinstance(number, str):
                    found.setdefault(tag, {})[step] = number
    return found


def same(found, wanted, reader):
    assert sorted(found) == sorted(wanted), (reader, sorted(set(found) ^ set(wanted)))
    for tag, values in wanted.items():
        assert sorted(found[tag]) == sorted(values), (reader, tag, sorted(found[tag]), sorted(values))
        for step, value in values.items():  # nine digits of an f64 on one side, an f32 on the other
            assert abs(found[tag][step] - value) <= 1e-7 * abs(value), (reader, tag, step, found[tag][step], value)


out = sys.argv[1]
wanted = expected(out + "/metrics.jsonl")
found, n_files = read(out + "/tensorboard")
same(found, wanted, "this reader")
try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError:
    print(f"{n_files} files, {len(found)} tags; tensorboard is not there")
    sys.exit(0)
events = EventAccumulator(out + "/tensorboard", size_guidance={"scalars": 0})
events.Reload()
same({tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}, wanted, "tensorboard")
print(f"{n_files} files, {len(found)} tags; tensorboard reads the same")
