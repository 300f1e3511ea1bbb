"""What indexers chose, in Python: the model and its lists, answers and batches, and the plan of a step, whose
rows are those of the records and whose metrics are what one counts by hand."""

import dataclasses
import json
import os
import pickle
import tempfile
import unittest
import warnings

import numpy as np
import support
from support import make_record

import waybill
import waybill.batches

NATIVE, FORCED, PADDING = 0, 1, 2
ANSWERS = os.path.join(support.GOLDEN, "import")
CONFIGS = os.path.join(support.GOLDEN, "configs")
K = 4


def make_model():
    """Layers 0 and 2 have an indexer of their own, layer 1 uses that of layer 0; the first MoE layer is
    hash-routed."""
    return waybill.RouteModel(
        "m", "0123456789abcdef0123456789abcdef", "softmax", 4, (1, 2, 3), 8, 2,
        indexer=waybill.Indexer((0, 1, 2), (0, 0, 2), K), hash_layers=(0,),
    )  # fmt: skip


def choose(random, tokens):
    """[rows, 2] lists of ascending positions, up to K of what the token may look at."""

    def some(p):
        return sorted(random.choice(p + 1, random.integers(0, min(K, p + 1) + 1), replace=False).tolist())

    return [[some(p) for _ in range(2)] for p in range(tokens - 1)]


def indexer_rows(lists):
    counts = np.array([[len(cell) for cell in row] for row in lists], np.uint32).reshape(-1, 2)
    positions = [p for row in lists for cell in row for p in cell]
    return 0, counts, np.cumsum(counts.ravel()).reshape(counts.shape), positions


def padded(lists, column):
    return np.array([cells[column] + [-1] * (K - len(cells[column])) for cells in lists], np.int32)


class Models(unittest.TestCase):
    def test_lists_stay(self):
        model = make_model()
        self.assertEqual(pickle.loads(pickle.dumps(model)), model)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "a.wbr")
            with waybill.create(path, model):
                pass
            found = waybill.open(path).model
            rated = dataclasses.replace(model, indexer=model.indexer._replace(rate=4))
            with waybill.create(path + "4", rated):
                pass
            self.assertEqual(waybill.open(path + "4").model, rated)
        self.assertEqual(found, model)
        self.assertEqual((found.hash_layers, found.indexer.columns), ((0,), (0, 2)))
        other = waybill.RouteModel(
            "m", model.fingerprint, "softmax", 4, (1, 2, 3), 8, 2, indexer=model.indexer, hash_layers=(0, 1)
        )
        with self.assertRaisesRegex(waybill.Mismatch, "n_hash_layers"):
            model.match(other)
        model.match(rated)  # which does not know its rate
        with self.assertRaisesRegex(waybill.Mismatch, "indexer_rate: expected 4, found 2"):
            rated.match(dataclasses.replace(model, indexer=model.indexer._replace(rate=2)))
        with self.assertRaisesRegex(waybill.InvalidArgument, r"hash_layers\[1\]"):
            waybill.RouteModel("m", model.fingerprint, "softmax", 4, (1, 2, 3), 8, 2, hash_layers=(1, 1))

    def test_of_a_config(self):
        model = waybill.RouteModel.from_config(os.path.join(CONFIGS, "deepseek_v4_flash"))
        self.assertEqual(model.hash_layers, (0, 1, 2))
        self.assertEqual(model.indexer[:1] + model.indexer[2:], (tuple(range(2, 43, 2)), 512, 4))
        self.assertEqual(model.indexer.columns, model.indexer.layers)


class Foreign(unittest.TestCase):
    def test_answers(self):
        with open(os.path.join(ANSWERS, "manifest.json")) as file:
            truth = [t for t in json.load(file)["truth"] if t["model"] == "indexed"]
        source = os.path.join(ANSWERS, "good_sglang_indexer.jsonl")
        records = list(waybill.import_(source, "sglang", os.path.join(ANSWERS, "indexed")))
        self.assertEqual(len(records), 2)
        for record, wanted in zip(records, truth):
            rows, chosen = len(wanted["indexer"]), record.indexer.chosen
            found = [[chosen(r, s).tolist() for s in range(2)] for r in range(rows)]
            self.assertEqual(found, wanted["indexer"])
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "a.wbr")
            with waybill.create(path, records[0].model) as writer:
                for record in records:
                    writer.append(record)
            dump = waybill.open(path)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                for system in ("sglang", "slime"):
                    waybill.export(dump, system, path + system)
                    for mine, theirs in zip(waybill.import_(path + system, system, dump), records):
                        np.testing.assert_array_equal(mine.indexer.counts, theirs.indexer.counts)
                        np.testing.assert_array_equal(mine.indexer.positions, theirs.indexer.positions)
            samples = waybill.batches.to_slime(dump)
            self.assertEqual(samples[0]["rollout_indexer_topk"].shape, (len(records[0]) - 1, 2, 3))
            for mine, theirs in zip(waybill.batches.from_slime(samples, dump), records):
                np.testing.assert_array_equal(mine.indexer.positions, theirs.indexer.positions)
            for system in ("npz", "vllm", "verl"):
                with self.assertWarnsRegex(UserWarning, f"indexers chose is left out: {system}"):
                    waybill.export(dump, system, path + system)
        missing = os.path.join(ANSWERS, "bad_sglang_indexer_missing_row.jsonl")
        with self.assertRaisesRegex(waybill.InvalidArgument, "position 17, .*a count of 3, found 0"):
            list(waybill.import_(missing, "sglang", os.path.join(ANSWERS, "indexed")))
        with self.assertWarnsRegex(UserWarning, "left out: the model has none"):
            list(waybill.import_(source, "sglang", os.path.join(ANSWERS, "narrow")))


class Plans(unittest.TestCase):
    def setUp(self):
        self.random = support.random_for(self)
        self.model = make_model()
        self.chosen = {}
        self.replay = waybill.Replay(self.model, indexer=True)
        self.records = []
        for rid, tokens in (("a", 7), ("b", 3)):
            self.chosen[rid] = choose(self.random, tokens)
            made = make_record(self.random, self.model, rid, tokens)
            fields = dict(made._fields(), indexer=indexer_rows(self.chosen[rid]))
            self.records.append(waybill.Record(self.model, **fields))
            self.replay.add(self.records[-1])

    def begin(self, mode="rollout"):
        self.replay.begin(mode, 1)
        segments = [waybill.Rows(record.rid, record.tokens) for record in self.records]
        self.replay.plan(0, [*segments, waybill.Padding(2)])

    def follow_experts(self):
        planned = self.replay.rows(0, waybill.ALL_LAYERS)
        used = planned.ids.copy()
        used[planned.direction == NATIVE] = np.arange(self.model.top_k)
        self.replay.store(0, waybill.ALL_LAYERS, used)

    def test_rows_are_the_records(self):
        self.begin()
        for i, column in enumerate((0, 0, 1)):
            found = self.replay.indexer_rows(0, i)
            self.assertTrue(found.any_forced and found.any_native)
            at = 0
            for rid in ("a", "b"):
                rows = len(self.chosen[rid])
                np.testing.assert_array_equal(found.listed[at : at + rows], padded(self.chosen[rid], column))
                np.testing.assert_array_equal(found.direction[at : at + rows], FORCED)
                self.assertEqual(found.direction[at + rows], NATIVE)
                np.testing.assert_array_equal(found.listed[at + rows], -1)
                at += rows + 1
            np.testing.assert_array_equal(found.direction[at:], PADDING)
            part = self.replay.indexer_rows(0, i, 2, 3)
            np.testing.assert_array_equal(part.listed, found.listed[2:5])

    def test_a_step_and_its_metrics(self):
        self.begin()
        with self.assertRaises(waybill.Mismatch):
            self.replay.end()
        self.follow_experts()
        with self.assertRaisesRegex(waybill.Mismatch, "indexer of model layer 0"):
            self.replay.end()
        expected = []
        for i in (0, 2):
            planned = self.replay.indexer_rows(0, i)
            used = planned.listed.copy()
            used[planned.direction == NATIVE, 0] = 0
            native = np.full_like(used, -1)
            native[:, 0] = 0
            self.replay.indexer_store(0, i, used, native)
            forced = [row[row >= 0] for row in planned.listed[planned.direction == FORCED]]
            shares = [1 if len(row) == 0 else float(0 in row) / len(row) for row in forced]
            differ = [row.tolist() != [0] for row in forced]
            expected.append((len(shares), np.mean(shares), np.mean(differ)))
        self.replay.end()
        missing, layers = self.replay.indexer_metrics()
        self.assertEqual(missing, 0)
        for found, wanted in zip((layers[0], layers[1], layers[2]), (expected[0], expected[0], expected[1])):
            np.testing.assert_allclose([found["tokens"], found["overlap"], found["differ"]], wanted)

    def test_what_is_refused(self):
        self.begin()
        planned = self.replay.indexer_rows(0, 0)
        used = planned.listed.copy()
        row = next(r for r in range(6) if planned.listed[r, 0] != 0)
        used[row] = [0, -1, -1, -1]
        with self.assertRaises(waybill.Mismatch):
            self.replay.indexer_store(0, 0, used)
        with self.assertRaisesRegex(waybill.InvalidArgument, "used"):
            self.replay.indexer_store(0, 0, used[:, :2])
        with self.assertRaisesRegex(waybill.InvalidArgument, "as many rows"):
            self.replay.indexer_store(0, 0, used, used[:3])
        with self.assertRaises(waybill.InvalidArgument):
            self.replay.indexer_rows(0, 3)
        plain = waybill.Replay(self.model)
        plain.add(self.records[0])
        plain.begin("rollout", 1)
        plain.plan(0, [waybill.Rows("a", self.records[0].tokens)])
        with self.assertRaises(waybill.InvalidArgument):
            plain.indexer_rows(0, 0)
        bare = support.make_model()
        with self.assertRaisesRegex(waybill.InvalidArgument, "no layer with an indexer"):
            waybill.Replay(bare, indexer=True)


if __name__ == "__main__":
    support.main()
