"""waybill.import_ and waybill.export: answers of other systems are the requests that they were made of, what
cannot be is refused by name, and what is exported is imported again."""

import json
import os
import pathlib
import tempfile
import unittest
import unittest.mock
import warnings

import numpy as np
import support
from support import make_record

import waybill

ANSWERS = pathlib.Path(support.GOLDEN, "import")
MANIFEST = json.loads((ANSWERS / "manifest.json").read_text())


def model_of(name):
    """The folder of its config.json; of a model whose layers differ in K, of which none says so, itself."""
    m = MANIFEST["models"][name]
    if "layer_K" not in m:
        return ANSWERS / name
    return waybill.RouteModel(
        "test_moe", support.FINGERPRINT, "softmax", m["hidden"], tuple(m["moe"]), m["E"], m["K"],
        layer_top_k=tuple(m["layer_K"]),
    )  # fmt: skip


def read(case, source=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # .npy files have no tokens
        return waybill.import_(
            source or ANSWERS / case["file"], case["layout"], model_of(case["model"]), **options
        )


class Importing(unittest.TestCase):
    def assert_record(self, expected, record):
        truth = MANIFEST["truth"][expected["truth"]]
        for name in ("rid", "finish", "group"):
            self.assertEqual(getattr(record, name), expected[name])
        self.assertEqual(record.prompt_len, truth["prompt_len"])
        self.assertEqual(record.tokens.tolist(), truth["tokens"])
        self.assertEqual(
            [tuple(s) for s in record.spans.tolist()][-1:],
            [] if expected["version"] is None else [(0, len(record), expected["version"])],
        )
        there = range(expected["start"], len(record) - 1) if expected["routes"] else ()
        rows = {p: truth["rows"][p] for p in there if p not in expected["missing"]}
        if record.model.layer_top_k:  # a row is the choices of the layers one after the other
            rows = {p: sum(row, []) for p, row in rows.items()}
        found = {record.start + r: row for r, row in enumerate(record.routes.tolist()) if record.valid[r]}
        self.assertEqual(found, rows)
        self.assertEqual(
            None if record.logprobs is None else record.logprobs.tolist(),
            truth["logprobs"] if expected["logprobs"] else None,
        )
        self.assertEqual(record.mask is not None, expected["mask"])
        if record.mask:
            kept = np.split(record.mask.ids, record.mask.ends[:-1])
            self.assertEqual([ids.tolist() for ids in kept], truth["masks"])

    def test_answers_are_the_requests_they_were_made_of(self):
        for case in MANIFEST["good"]:
            with self.subTest(case["file"]):
                shape = MANIFEST["models"][case["model"]]
                for source in (None, (ANSWERS / case["file"]).read_bytes()):
                    answers = read(case, source)
                    self.assertEqual(answers.model.moe_layers, tuple(shape["moe"]))
                    self.assertEqual(
                        (answers.model.num_experts, answers.model.top_k), (shape["E"], shape["K"])
                    )
                    # All of them are looked at after the import has gone: they have arrays of their own.
                    records = list(answers)
                    self.assertRaises(StopIteration, next, answers)
                    del answers
                    self.assertEqual(len(records), len(case["records"]))
                    for expected, record in zip(case["records"], records):
                        self.assert_record(expected, record)
        self.assertGreater(len(MANIFEST["good"]), 50)

    def test_what_cannot_be_is_refused_and_the_rest_is_read(self):
        for case in MANIFEST["bad"]:
            with self.subTest(case["file"]):
                with self.assertRaises(waybill.Error) as caught:
                    list(read(case))
                self.assertEqual(caught.exception.status, case["status"])
                self.assertIn(case["message"], str(caught.exception))
                self.assertIn(case["file"], str(caught.exception))
                try:
                    answers, refused = read(case), []
                except waybill.Error:  # an archive, of which nothing can be read
                    continue
                skipping = list(read(case, refused=refused.append))
                self.assertEqual(len(skipping), case["good_read"])
                self.assertEqual(str(refused[0]), str(caught.exception))
                # The same with next, which goes on after an error.
                good = bad = 0
                while True:
                    try:
                        good += bool(next(answers).rid)
                    except StopIteration:
                        break
                    except waybill.Error:
                        bad += 1
                self.assertEqual((good, bad), (len(skipping), len(refused)))
        self.assertGreater(len(MANIFEST["bad"]), 50)

    def test_sources_and_models(self):
        with self.assertWarnsRegex(UserWarning, "without tokens") as caught:
            waybill.import_(ANSWERS / "good_slime_routes_alone.npy", "slime", ANSWERS / "narrow")
        self.assertEqual(caught.filename, __file__)
        model = waybill.RouteModel.from_config(ANSWERS / "narrow")
        good = str(ANSWERS / "good_vllm_u1.jsonl")
        rids = [record.rid for record in waybill.import_(good, "vllm", model)]
        self.assertEqual(
            rids, [record.rid for record in waybill.import_(good, "vllm", str(ANSWERS / "narrow"))]
        )
        self.assertTrue(rids)
        self.assertEqual(list(waybill.import_(b"", "vllm", model)), [])
        answers = waybill.import_(good, "vllm", model)
        answers.close()
        self.assertEqual(list(answers), [])
        with self.assertRaisesRegex(waybill.InvalidArgument, "expected one of vllm sglang"):
            waybill.import_(good, "vlm", model)
        with self.assertRaisesRegex(OSError, "nowhere"):
            waybill.import_("nowhere.jsonl", "vllm", model)
        with self.assertRaisesRegex(waybill.Error, "nowhere"):
            waybill.import_(good, "vllm", "nowhere")
        with self.assertRaisesRegex(waybill.InvalidArgument, "model"):
            waybill.import_(good, "vllm", 7)
        with self.assertRaisesRegex(TypeError, "source"):
            waybill.import_([{"id": "a"}], "vllm", model)

    def test_a_folder_says_which_tokens_there_are(self):
        config = json.loads((ANSWERS / "narrow" / "config.json").read_text())
        good = str(ANSWERS / "good_vllm_u1.jsonl")
        with tempfile.TemporaryDirectory() as folder:
            for changed, expected in (({"vocab_size": 2}, "0..1, found"), ({"model_type": "llama"}, "llama")):
                pathlib.Path(folder, "config.json").write_text(json.dumps({**config, **changed}))
                with self.assertRaisesRegex(waybill.Error, expected):
                    list(waybill.import_(good, "vllm", folder))
            pathlib.Path(folder, "config.json").write_text(json.dumps({**config, "model_type": "qwen2_moe"}))
            (record,) = waybill.import_(good, "vllm", folder)
            self.assertEqual((record.model.name, record.model.moe_layers), ("qwen2_moe", (1, 2, 3)))


class Exporting(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def dump(self, records):
        with waybill.create(self.folder / "a.wbr", records[0].model) as writer:
            for record in records:
                writer.append(record)
        return waybill.open(self.folder / "a.wbr")

    def test_what_is_exported_is_imported_again(self):
        random = support.random_for(self)
        model = waybill.RouteModel.from_config(ANSWERS / "narrow")
        records = [make_record(random, model, f"request-{i}", group=i) for i in range(6)]
        dump = self.dump(records)
        for system in ("sglang", "vllm", "slime", "verl"):
            path = self.folder / ("out." + ("npz" if system in ("slime", "verl") else "jsonl"))
            waybill.export(dump, system, path)
            found = list(waybill.import_(path, system, model))
            self.assertEqual(len(found), len(records))
            for record, again in zip(records, found):
                np.testing.assert_array_equal(again.tokens, record.tokens)
                np.testing.assert_array_equal(again.routes[again.valid], record.routes)
                np.testing.assert_array_equal(again.logprobs, record.logprobs)
        waybill.export(dump, "npz", str(path))  # over the file that is there
        arrays = np.load(path)
        np.testing.assert_array_equal(arrays["tokens"], np.concatenate([r.tokens for r in records]))
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["a.wbr", "out.jsonl", "out.npz"])

    def test_what_has_no_place_is_left_out_on_request(self):
        random = support.random_for(self)
        model = waybill.RouteModel.from_config(ANSWERS / "narrow")
        holes = make_record(random, model, "holes", 8, valid=np.arange(7) != 3)
        dump = self.dump([make_record(random, model, "a"), holes, make_record(random, model, "b")])
        refused, path = [], self.folder / "out.jsonl"
        waybill.export(dump, "vllm", path, refused=refused.append)
        self.assertEqual([r.rid for r in waybill.import_(path, "vllm", model)], ["a", "b"])
        self.assertEqual([type(error) for error in refused], [waybill.Unsupported])
        self.assertRegex(str(refused[0]), "record holes: position 3")

        def no_more(error):
            raise KeyboardInterrupt

        with self.assertRaises(KeyboardInterrupt):
            waybill.export(dump, "vllm", self.folder / "other.jsonl", refused=no_more)
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["a.wbr", "out.jsonl"])

    def test_a_failure_leaves_nothing(self):
        random = support.random_for(self)
        model = waybill.RouteModel.from_config(ANSWERS / "narrow")
        record = make_record(random, model, "a", 8, valid=np.arange(7) < 6)
        dump = self.dump([record])
        with self.assertRaisesRegex(waybill.Unsupported, "a"):
            waybill.export(dump, "vllm", self.folder / "out.jsonl")
        with self.assertRaisesRegex(waybill.InputOutput, "nowhere"):
            waybill.export(dump, "npz", self.folder / "nowhere" / "out.npz")
        if os.path.exists("/dev/full"):
            os.symlink("/dev/full", self.folder / f"full.npz.{os.getpid()}.tmp")
            with self.assertRaisesRegex(waybill.InputOutput, "full.npz: No space"):
                waybill.export(dump, "npz", self.folder / "full.npz")

        # An interrupt in the middle of a write comes out, where ctypes would print it and go on.
        def interrupted(path, mode):
            file = open(path, mode)
            self.addCleanup(file.close)
            return unittest.mock.MagicMock(
                __enter__=lambda _: unittest.mock.Mock(
                    write=unittest.mock.Mock(side_effect=KeyboardInterrupt)
                )
            )

        with unittest.mock.patch.object(waybill._foreign, "open", interrupted, create=True):
            with self.assertRaises(KeyboardInterrupt):
                waybill.export(dump, "npz", self.folder / "out.npz")
        with self.assertRaisesRegex(waybill.InvalidArgument, "expected one of npz"):
            waybill.export(dump, "numpy", self.folder / "out")
        with self.assertRaisesRegex(TypeError, "Dump"):
            waybill.export([record], "npz", self.folder / "out")
        self.assertEqual([p.name for p in self.folder.iterdir()], ["a.wbr"])


if __name__ == "__main__":
    support.main()
