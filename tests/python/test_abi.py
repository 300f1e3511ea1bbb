"""What the package and its library say of each other agree: every name that the package uses is there, every
name that the library describes is used, and signatures are read as they are meant."""

import ctypes
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import support

import waybill
from waybill import _abi

PACKAGE = pathlib.Path(waybill.__file__).parent


# What a module keeps goes when the interpreter empties modules, those of the package before or after it.
AT_EXIT = """
import sys, warnings
import support, waybill, numpy
from waybill import eplb
model = support.make_model()
dump = waybill.open(support.golden("good_u8.wbr")[0])
warnings.simplefilter("ignore")
kept = [
    waybill.Replay(model), dump[0], dump, waybill.import_(b"", "vllm", model),
    waybill.create(sys.argv[1] + "/a.wbr", model),
    eplb.Placement.trivial(eplb.Topology(n_ranks=2, n_slots=8), 3, 8),
]
try:
    import torch, waybill.torch
    kept.append(waybill.torch.RouterReplay(model))
    torch.kept = kept
except ImportError:
    numpy.kept = kept
print(len(kept))
"""


class Names(unittest.TestCase):
    def used(self, pattern):
        texts = [path.read_text(encoding="utf-8") for path in sorted(PACKAGE.glob("*.py"))]
        self.assertGreater(len(texts), 8)
        return {name for text in texts for name in re.findall(pattern, text)}

    def test_functions(self):
        used = self.used(r"functions\[\s*\"(wb_\w+)\"") | {
            name + "_init" for name in self.used(r"options\(\s*\"(wb_\w+)\"")
        }
        self.assertEqual(used - set(_abi.functions), set())
        self.assertEqual(set(_abi.functions) - used, set())

    def test_structs(self):
        used = (
            self.used(r"structs\[\"(wb_\w+)\"\]")
            | self.used(r"dtype\(\"(wb_\w+)\"")
            | self.used(r"(?:struct|options)\(\s*\"(wb_\w+)\"")
        )
        used |= {"wb_layer_map", "wb_counts_info", "wb_physical_id"}  # results, and a field
        self.assertEqual(used - set(_abi.structs), set())
        self.assertEqual(set(_abi.structs) - used, set())

    def test_what_is_there_when_the_interpreter_ends_goes_without_a_word(self):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", AT_EXIT, folder]
            path = os.pathsep.join(filter(None, sys.path))
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
            )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertGreaterEqual(int(done.stdout), 6)

    def test_what_is_not_there_is_said(self):
        with self.assertRaisesRegex(ImportError, "wb_nothing"):
            _abi.functions["wb_nothing"]

    def test_every_status_has_its_exception(self):
        for name, value in _abi._described.statuses.items():
            if name != "OK":
                self.assertEqual(_abi.error_of(value).status, name)

    def test_signatures(self):
        split = _abi._split("(const char *path, void (*f)(void *ctx, int n), wb_ids ids)")
        self.assertEqual(split, ["const char *path", "void (*f)(void *ctx, int n)", "wb_ids ids"])
        types = [_abi._described._parameter(part) for part in split]
        self.assertEqual(types, [ctypes.c_char_p, ctypes.c_void_p, _abi.structs["wb_ids"]])
        self.assertIs(_abi._described._parameter("wb_replay_mode mode"), ctypes.c_int)
        self.assertIs(_abi._described._parameter("size_t *n_out"), ctypes.c_void_p)
        record = _abi.structs["wb_record"]
        self.assertEqual(record.rid.offset, 0)
        self.assertEqual(record.group.offset, ctypes.sizeof(ctypes.c_void_p))


if __name__ == "__main__":
    support.main()
