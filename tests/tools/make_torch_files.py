#!/usr/bin/env python3
"""Writes tests/golden/torch: small files as torch.save writes them, good ones and bad ones, for the reader that does without
torch; the tests only read what was written.

Needs torch and numpy. usage: make_torch_files.py OUT

good_*.pt hold counts or maps whose values follow from the place: value(pass, layer, expert) = 100 pass + 10 layer + expert.
bad_*.pt are each of a kind that has to be refused. A pickle of bad_code.pt would run a command if it were loaded.
"""
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict

import numpy
import torch


def values(passes, layers, experts, dtype):
    """[passes][layers][experts], or [layers][experts] for 0 passes."""
    counts = [[[100 * p + 10 * l + e for e in range(experts)] for l in range(layers)] for p in range(max(passes, 1))]
    return torch.tensor(counts if passes else counts[0], dtype=dtype)


def recorder(counts, rank=0):
    """What SGLang's recorder saves."""
    return {"rank": rank, "logical_count": counts, "average_utilization_rate_over_window": {10: 0.5, 100: 0.25, 1000: None}}


def rewrite(source, target, change, compression=zipfile.ZIP_STORED):
    """A copy of an archive whose members were passed through change(name, bytes), which gives None for one to leave out."""
    with zipfile.ZipFile(source) as a, zipfile.ZipFile(target, "w", compression) as b:
        for info in a.infolist():
            content = change(info.filename.split("/", 1)[1], a.read(info))
            if content is not None:
                entry = zipfile.ZipInfo(info.filename, (1980, 1, 1, 0, 0, 0))
                entry.compress_type = compression
                b.writestr(entry, content)


def only(member, function):
    return lambda name, content: function(content) if name == member else content


def zip64(source, target):
    """A copy whose sizes, offsets and end record are those of zip64, as an archive of more than 4 GiB has them."""
    with zipfile.ZipFile(source) as a:
        members = [(i.filename.encode(), a.read(i)) for i in a.infolist()]
    out, directory = b"", b""
    for name, content in members:
        extra = struct.pack("<HHQQ", 1, 16, len(content), len(content))
        entry_extra = struct.pack("<HHQQQ", 1, 24, len(content), len(content), len(out))
        crc = zipfile.crc32(content)
        common = struct.pack("<HHHHLLL", 0, 0, 0, 33, crc, 0xFFFFFFFF, 0xFFFFFFFF)
        directory += b"PK\1\2" + struct.pack("<HH", 45, 45) + common + struct.pack("<HHHHHLL", len(name), len(entry_extra), 0, 0, 0, 0, 0xFFFFFFFF) + name + entry_extra
        out += b"PK\3\4" + struct.pack("<H", 45) + common + struct.pack("<HH", len(name), len(extra)) + name + extra + content
    end = len(out) + len(directory)
    tail = b"PK\6\6" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, len(members), len(members), len(directory), len(out))
    tail += b"PK\6\7" + struct.pack("<LQL", 0, end, 1)
    tail += b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    with open(target, "wb") as f:
        f.write(out + directory + tail)


def patch_crc(source, target, member, change):
    """A copy in which the checksums of a member, or of all for None, are change(checksum)."""
    with open(source, "rb") as file:
        data = bytearray(file.read())
    with zipfile.ZipFile(source) as a:
        at = a.start_dir
        for info in a.infolist():
            length = 46 + sum(struct.unpack_from("<HHH", data, at + 28))
            if member is None or info.filename.endswith("/" + member):
                struct.pack_into("<L", data, at + 16, change(info.CRC))
                struct.pack_into("<L", data, info.header_offset + 14, change(info.CRC))
            at += length
    with open(target, "wb") as file:
        file.write(data)


class Code:
    def __reduce__(self):
        return (os.system, ("touch waybill-ran-a-pickle",))


def make_good(path):
    torch.save(recorder(values(3, 4, 8, torch.int32)), path("good_recorder.pt"))
    torch.save(recorder(values(3, 4, 8, torch.int32) * 2, rank=1), path("good_recorder_rank1.pt"))
    torch.save(recorder(values(3, 4, 8, torch.int32)), path("good_protocol4.pt"), pickle_protocol=4)
    torch.save(recorder(values(0, 4, 8, torch.int64)), path("good_one_pass.pt"))
    torch.save(values(3, 4, 8, torch.float32), path("good_tensor.pt"))
    for name, dtype in [("byte", torch.uint8), ("short", torch.int16), ("double", torch.float64)]:
        torch.save(values(2, 4, 8, dtype), path(f"good_{name}.pt"))
    # A view: other strides, an offset, a storage that is larger than it.
    torch.save(values(4, 8, 9, torch.int32)[1:, :, 1:].transpose(1, 2), path("good_view.pt"))
    torch.save(OrderedDict(other=[1, (2.5, None, True, -3, 1 << 40, "text")], logical_count=values(0, 4, 8, torch.int32)), path("good_ordered.pt"))
    torch.save({"physical_to_logical_map": torch.tensor([[0, 1, 2, 0], [2, 1, 0, 2]])}, path("good_map.pt"))
    torch.save(recorder(values(3, 4, 8, torch.int32).tolist()), path("good_list.pt"))
    torch.save({"logical_count": [values(3, 4, 8, torch.int32)[p].clone() for p in range(3)]}, path("good_tensor_list.pt"))
    torch.save([list(values(3, 4, 8, torch.int32)[p].unbind()) for p in range(3)], path("good_rows.pt"))
    zip64(path("good_recorder.pt"), path("good_zip64.pt"))
    patch_crc(path("good_recorder.pt"), path("good_no_crc.pt"), None, lambda crc: 0)


def make_bad(path):
    good = path("good_recorder.pt")
    torch.save(Code(), path("bad_code.pt"))
    torch.save({"logical_count": numpy.zeros((4, 8))}, path("bad_numpy.pt"))
    torch.save({"logical_count": values(0, 4, 8, torch.bfloat16)}, path("bad_bfloat16.pt"))
    torch.save({"logical_count": torch.tensor([[1, -1]])}, path("bad_negative.pt"))
    torch.save({"logical_count": torch.tensor([[1, float("nan")]])}, path("bad_nan.pt"))
    torch.save({"logical_count": torch.zeros((0, 8))}, path("bad_empty.pt"))
    torch.save({"logical_count": torch.zeros((1, 1, 1, 1))}, path("bad_four_dimensions.pt"))
    torch.save({"logical_count": torch.zeros(1).expand(1 << 20, 1 << 20)}, path("bad_expanded.pt"))
    torch.save({"logical_count": [[1, 2], [3]]}, path("bad_list.pt"))
    torch.save({"logical_count": [[1, "2"]]}, path("bad_list_text.pt"))
    torch.save({"logical_count": [torch.ones((4, 8)), torch.ones((4, 7))]}, path("bad_tensor_list.pt"))
    row = [0] * 1000
    torch.save({"logical_count": [[row] * 1000] * 1000}, path("bad_list_again.pt"))
    passes = [{"forward_pass_id": 1, "rank": 0, "global_physical_count": torch.ones((4, 8), dtype=torch.int32)}]
    torch.save({"records": passes, "last_physical_to_logical_map": torch.arange(8).expand(4, 8)}, path("bad_records.pt"))
    torch.save(recorder(values(3, 4, 8, torch.int32)), path("bad_legacy.pt"), _use_new_zipfile_serialization=False)
    patch_crc(good, path("bad_crc.pt"), "data/0", lambda crc: crc ^ 1)
    rewrite(good, path("bad_big_endian.pt"), only("byteorder", lambda content: b"big"))
    rewrite(good, path("bad_compressed.pt"), lambda name, content: content, zipfile.ZIP_DEFLATED)
    rewrite(good, path("bad_short_storage.pt"), only("data/0", lambda content: content[:-4]))
    make_bad_views(good, path)
    rewrite(good, path("bad_twice.pt"), lambda name, content: content)
    with zipfile.ZipFile(path("bad_twice.pt"), "a", zipfile.ZIP_STORED) as a:
        entry = zipfile.ZipInfo("other_folder/data.pkl", (1980, 1, 1, 0, 0, 0))
        a.writestr(entry, a.read("good_recorder/data.pkl"))
    rewrite(good, path("bad_no_storage.pt"), only("data/0", lambda content: None))
    rewrite(good, path("bad_no_pickle.pt"), only("data.pkl", lambda content: None))
    rewrite(good, path("bad_pickle_cut.pt"), only("data.pkl", lambda content: content[:-1]))
    rewrite(good, path("bad_pickle_after.pt"), only("data.pkl", lambda content: content + b"."))


def make_bad_views(good, path):
    """The pickle has offset 0, the shape (3, 4, 8) and the strides (32, 8, 1) of 96 elements, each number as K and a byte. What
    torch itself would not make: views whose first or last element is not in the storage."""
    view = b"K\0K\3K\4K\x08\x87q\tK\x20K\x08K\1\x87"
    for name, changed in [
        ("bad_offset.pt", b"K\1K\3K\4K\x08\x87q\tK\x20K\x08K\1\x87"),
        ("bad_offset_one.pt", b"K\x60K\1K\1K\1\x87q\tK\x20K\x08K\1\x87"),
        ("bad_stride.pt", b"K\0K\3K\4K\x08\x87q\tK\x21K\x08K\1\x87"),
        ("bad_stride_inner.pt", b"K\0K\3K\4K\x08\x87q\tK\x20K\x08K\2\x87"),
    ]:
        rewrite(good, path(name), only("data.pkl", lambda content: replace_once(content, view, changed)))


def replace_once(content, old, new):
    assert content.count(old) == 1, "the pickle of another version of torch: look at it with pickletools"
    return content.replace(old, new)


def main():
    out = sys.argv[1]
    os.makedirs(out, exist_ok=True)
    make_good(lambda name: os.path.join(out, name))
    make_bad(lambda name: os.path.join(out, name))


if __name__ == "__main__":
    main()
