"""waybill.open and waybill.create: records equal what an independent reader finds, views outlive what they
were taken from, what is bad is refused with the library's message."""

import contextlib
import copy
import gc
import io
import os
import pathlib
import pickle
import re
import subprocess
import sys
import tempfile
import threading
import unittest
import warnings

import numpy as np
import support
from support import golden, make_model, make_record, make_routes

import waybill


def independent_reader():
    """`read` of the README, with codec packed, which knows nothing of this library; None where its packages
    are not there."""
    sys.path.insert(0, str(pathlib.Path(support.TESTS, "tools")))
    try:
        import read_dump
    except SystemExit:  # it says which package it lacks
        return None
    return lambda path: read_dump.read(path, {"packed": read_dump.unpack})


class Reading(unittest.TestCase):
    def test_records_are_what_an_independent_reader_finds(self):
        read = independent_reader()
        if read is None:
            self.skipTest("no msgpack or zstandard here")
        n_records = n_rows = 0
        for path in golden("good_*.wbr"):
            dump = waybill.open(path)
            expected = list(read(path))
            self.assertEqual(len(dump), len(expected), path)
            for record, (fields, rows) in zip(dump, expected):
                self.assertEqual(record.rid, fields["rid"])
                self.assertEqual(record.finish, fields["finish"])
                self.assertEqual(record.prompt_len, fields["prompt_len"])
                np.testing.assert_array_equal(record.tokens, np.frombuffer(fields["tokens"], "<u4"))
                if "logprobs" in fields:
                    np.testing.assert_array_equal(record.logprobs, np.frombuffer(fields["logprobs"], "<f4"))
                at = {record.start + r: ids for r, ids in enumerate(record.routes) if record.valid[r]}
                self.assertEqual(sorted(at), sorted(rows), record.rid)
                for position, ids in rows.items():
                    np.testing.assert_array_equal(at[position], ids)
                n_records, n_rows = n_records + 1, n_rows + len(rows)
        self.assertGreater(n_rows, n_records)
        self.assertGreater(n_records, 10)

    def test_runs_and_routes_say_the_same(self):
        for path in golden("good_*.wbr"):
            for record in waybill.open(path):
                self.assertEqual(record.routes.dtype, record.model.id_dtype)
                for run in record.runs:
                    part = slice(run.start - record.start, run.start - record.start + len(run.ids))
                    np.testing.assert_array_equal(record.routes[part], run.ids)
                    bits = np.ones(len(run.ids), bool)
                    if run.valid is not None:
                        bits = np.array([run.valid[r // 8] >> r % 8 & 1 for r in range(len(run.ids))], bool)
                    np.testing.assert_array_equal(record.valid[part], bits)

    # What a record has of the library's memory.
    views = {
        "tokens": lambda record: record.tokens,
        "logprobs": lambda record: record.logprobs,
        "sampling_logprobs": lambda record: record.sampling_logprobs,
        "spans": lambda record: record.spans,
        "mask ids": lambda record: record.mask and record.mask.ids,
        "mask ends": lambda record: record.mask and record.mask.ends,
        "routes": lambda record: record.runs[0].ids if record.runs else None,
        "valid": lambda record: record.runs[0].valid if record.runs else None,
        "indexer counts": lambda record: record.indexer and record.indexer.counts,
        "indexer ends": lambda record: record.indexer and record.indexer.ends,
        "indexer positions": lambda record: record.indexer and record.indexer.positions,
    }

    def test_views_are_no_copies(self):
        seen = set()
        for path in golden("good_*.wbr"):
            addresses = []
            records = list(waybill.open(path))
            for record in records:
                for name, take in self.views.items():
                    view = take(record)
                    if view is None or not view.size:
                        continue
                    seen.add(name)
                    self.assertFalse(view.flags.writeable or view.flags.owndata, name)
                    addresses.append(view.__array_interface__["data"][0])
                    self.assertEqual(take(record).__array_interface__["data"][0], addresses[-1], name)
                if len(record.runs) == 1:
                    self.assertTrue(np.shares_memory(record.routes, record.runs[0].ids))
            self.assertEqual(len(set(addresses)), len(addresses))
        self.assertEqual(seen, set(self.views))

    def test_each_view_alone_keeps_its_record_and_dump(self):
        # A view of a file that is no longer mapped ends this process; one of freed memory finds poison.
        for path in golden("good_*.wbr"):
            for name, take in self.views.items():
                dump = waybill.open(path)
                for i in range(len(dump)):
                    view = take(dump[i])
                    if view is None:
                        continue
                    copy = view.copy()
                    if i == len(dump) - 1:
                        dump.close()
                        with self.assertRaisesRegex(waybill.InvalidArgument, "closed"):
                            dump[0]
                        del dump
                        gc.collect()
                    poison = [np.full(view.nbytes or 1, 0xA5, np.uint8) for _ in range(20)]
                    np.testing.assert_array_equal(view, copy, f"{path} {name}")
                    del poison, view

    def test_what_was_read_is_given_back(self):
        given_back, finalizer = [], waybill._dump._Hold.__del__
        (real,) = finalizer.__defaults__

        def count(*arguments):
            given_back.append(arguments[1])
            real(*arguments)

        finalizer.__defaults__ = (count,)
        try:
            dump = waybill.open(golden("good_zstd.wbr")[0])
            views = [record.tokens for record in dump]
            self.assertEqual(given_back, [])
            views.pop(1)
            self.assertEqual(given_back, [1])
            views.clear()
            self.assertEqual(sorted(given_back), list(range(len(dump))))
            # Where both are garbage of one circle, the dump may be finalised first.
            record = dump[0]
            dump._handle.__del__()
            del record
            self.assertEqual(len(given_back), len(dump))
        finally:
            finalizer.__defaults__ = (real,)

    def test_numbers_names_and_the_end(self):
        dump = waybill.open(golden("good_u8.wbr")[0])
        rids = [record.rid for record in dump]
        self.assertEqual(dump[-1].rid, rids[-1])
        self.assertEqual([dump[rid].rid for rid in rids], rids)
        self.assertIn(rids[0], dump)
        self.assertNotIn("nobody", dump)
        self.assertNotIn(rids[0] + "\0", dump)
        self.assertNotIn(0, dump)
        with self.assertRaisesRegex(waybill.NotFound, "nobody"):
            dump["nobody"]
        for i in (len(dump), -len(dump) - 1):
            with self.assertRaises(IndexError):
                dump[i]
        self.assertEqual(dump[np.int64(1)].rid, rids[1])
        for part in (slice(0, 2), slice(None, None, -1), slice(-2, None), slice(5, 1), slice(0, 99, 2)):
            self.assertEqual([record.rid for record in dump[part]], rids[part])
        for which in (None, 1.0, (0, 1), b"rid", [0]):
            with self.assertRaisesRegex(TypeError, "number, rid or slice, found " + type(which).__name__):
                dump[which]

    def test_what_is_bad_is_refused(self):
        for path in golden("bad_*.wbr"):
            with self.subTest(path), self.assertRaises(waybill.Error) as caught:
                waybill.verify(path)
            self.assertIn(os.path.basename(path), str(caught.exception))
            self.assertIn(caught.exception.status, ("CORRUPT", "UNSUPPORTED", "MISMATCH"))
        with self.assertRaisesRegex(OSError, "nowhere"):
            waybill.open("nowhere.wbr")
        with tempfile.TemporaryDirectory() as folder, self.assertRaises(waybill.NotFound):
            waybill.open(folder)

    def test_a_cut_file_yields_what_lies_before_the_cut(self):
        path = golden("good_u8.wbr")[0]
        whole = pathlib.Path(path).read_bytes()
        rids = [record.rid for record in waybill.open(path)]
        with tempfile.TemporaryDirectory() as folder:
            cut = os.path.join(folder, "part-0.wbr")
            with open(cut, "wb") as file:
                file.write(whole[: len(whole) // 2])
            with self.assertWarnsRegex(RuntimeWarning, r"1 of 1 files cut: .*part-0\.wbr: byte") as caught:
                dump = waybill.open(folder)
            self.assertEqual(caught.filename, __file__)
            self.assertEqual([record.rid for record in dump], rids[: len(dump)])
            self.assertLess(len(dump), len(rids))
            self.assertIn("part-0.wbr", dump.info.lost_where)
            self.assertGreater(dump.info.lost_bytes, 0)

    def test_verify_and_open_tell_cut_files_from_whole_ones(self):
        # The same verdict as the library's, wherever the file ends: only a whole object is no cut.
        whole = pathlib.Path(golden("good_u8.wbr")[0]).read_bytes()
        header = n_cut = n_whole = 0
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "part-0.wbr")
            for end in range(1, len(whole) + 1):
                pathlib.Path(path).write_bytes(whole[:end])
                with warnings.catch_warnings(record=True) as warned:
                    warnings.simplefilter("always")
                    try:
                        info = waybill.open(path).info
                    except waybill.Corrupt:  # the header is not whole, so that no model is known
                        header += 1
                        continue
                self.assertEqual(len(warned), info.files_cut, end)
                if info.files_cut:
                    n_cut += 1
                    with self.assertRaises(waybill.Corrupt) as caught:
                        waybill.verify(path)
                    self.assertIn(info.lost_where, str(caught.exception))
                else:
                    n_whole += 1
                    self.assertEqual(waybill.verify(path), info)
        self.assertGreater(header, 0)
        self.assertGreater(n_cut, 0)
        self.assertGreater(n_whole, 0)

    def test_pickles_are_the_same_record_without_its_dump(self):
        for path in golden("good_*.wbr"):
            for record in waybill.open(path):
                for again in (pickle.loads(pickle.dumps(record)), copy.deepcopy(record)):
                    self.assertEqual(again.model, record.model)
                    for name in ("rid", "group", "sample", "prompt_len", "finish", "sampling", "start"):
                        self.assertEqual(getattr(again, name), getattr(record, name), name)
                    self.assertEqual([run.start for run in again.runs], [run.start for run in record.runs])
                    for name, take in self.views.items():
                        view, copied = take(record), take(again)
                        self.assertEqual(view is None, copied is None, name)
                        if view is not None:
                            np.testing.assert_array_equal(copied, view, name)
                            self.assertFalse(np.shares_memory(copied, view), name)
                    np.testing.assert_array_equal(again.routes, record.routes)
        model = make_model()
        again = pickle.loads(pickle.dumps(model))
        self.assertEqual(again, model)
        again.match(model)

    def test_garbage_in_any_order_at_exit(self):
        # In a circle of garbage the dump may be finalised before its records; views may be the last of all.
        script = (
            "import waybill, sys\n"
            "class Circle: pass\n"
            "for path in sys.argv[1:]:\n"
            "    circle = Circle(); circle.circle = circle\n"
            "    circle.dump = waybill.open(path); circle.records = list(circle.dump)\n"
            "    circle.views = [record.tokens for record in circle.records]\n"
            "kept = circle, waybill.open(path)[0], waybill.open(path)[0].tokens\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, *golden("good_*.wbr")], capture_output=True, text=True
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_threads_take_turns(self):
        dump = waybill.open(golden("good_zstd.wbr")[0])
        expected = [int(record.routes.sum()) for record in dump]
        faults = []

        def read():
            for _ in range(30):
                found = [int(record.routes.sum()) for record in dump]
                if found != expected:
                    faults.append(found)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(faults, [])


class Readme(unittest.TestCase):
    def test_its_lines_run(self):
        text = pathlib.Path(support.TESTS, "..", "README.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```py\n(.*?)```", text, re.S)
        self.assertEqual(len(blocks), 2)
        compile(blocks[1], "README.md", "exec")
        random, model = support.random_for(self), make_model()
        with tempfile.TemporaryDirectory() as folder:
            with waybill.create(os.path.join(folder, "part-0.wbr"), model) as writer:
                for i in range(5):
                    writer.append(make_record(random, model, f"request-{i}"))
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(blocks[0].replace("run/dump", folder), {})
        self.assertIn("request-0", printed.getvalue())


class Writing(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def records(self, random, model):
        for i in range(20):
            n = int(random.integers(3, 40))
            fields = {}
            if i % 3 == 0:
                fields["valid"] = random.random(n - 1) < 0.7
            if i % 4 == 1:
                middle = int(random.integers(1, n - 1))
                rows = make_routes(random, model, n)
                fields["routes"] = None
                fields["runs"] = [waybill.Run(0, rows[: middle // 2], None)] if middle > 1 else []
                fields["runs"].append(waybill.Run(middle, rows[middle : n - 1], None))
                fields["runs"] = [run for run in fields["runs"] if len(run.ids)]
            if i % 2:
                fields["spans"] = [(0, n // 2, 2**40 + i), (n // 2, n, 2**63)] if n // 2 else []
                fields["sampling"] = waybill.Sampling(0.5, 7, 0.75)
            yield make_record(random, model, f"request-{i}é", n, group=i // 4, sample=i % 4, **fields)

    def assert_same(self, one, other):
        for name in ("rid", "group", "sample", "prompt_len", "finish", "sampling", "digest", "start"):
            self.assertEqual(getattr(one, name), getattr(other, name), name)
        for name in ("tokens", "logprobs", "spans", "valid"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
        np.testing.assert_array_equal(one.routes[one.valid], other.routes[other.valid])

    def test_indexers_and_layers_that_differ_come_back(self):
        for name in ("good_indexer.wbr", "good_indexer_zstd.wbr", "good_layers_top_k.wbr"):
            source = waybill.open(golden(name)[0])
            self.assertEqual(pickle.loads(pickle.dumps(source.model)), source.model)
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "copy.wbr")
                with waybill.create(path, source.model) as writer:
                    for record in source:
                        writer.append(
                            waybill.Record(
                                source.model, record.rid, record.tokens, record.prompt_len,
                                runs=record.runs, indexer=record.indexer,
                            )
                        )  # fmt: skip
                copy = waybill.open(path)
                self.assertEqual(copy.model, source.model)
                for mine, theirs in zip(copy, source):
                    np.testing.assert_array_equal(mine.valid, theirs.valid)
                    np.testing.assert_array_equal(mine.routes[mine.valid], theirs.routes[theirs.valid])
                    self.assertEqual(mine.indexer is None, theirs.indexer is None)
                    for row in range(len(mine.indexer.counts) if mine.indexer else 0):
                        for column in range(2):
                            chosen = mine.indexer.chosen(row, column)
                            np.testing.assert_array_equal(chosen, theirs.indexer.chosen(row, column))
                            self.assertEqual(len(chosen), mine.indexer.counts[row, column])
        model = waybill.open(golden("good_layers_top_k.wbr")[0]).model
        self.assertEqual((model.row_shape, model.layer_k(1), model.weighted), ((11,), 3, 9))
        with self.assertRaisesRegex(waybill.InvalidArgument, "layer_top_k"):
            waybill.RouteModel("m", model.fingerprint, "softmax", 4, (1, 2, 3), 12, 4, layer_top_k=(4, 0, 4))

    def test_the_numbers_of_tables_are_numbers(self):
        """Cells of a table are Python's objects; None among reals is NaN."""
        model = waybill.open(golden("good_*.wbr")[0]).model
        cells = np.array([5, 6, 7], object)
        record = waybill.Record(model, "b", cells, 1, logprobs=np.array([None, -1.0, -2], object)[1:])
        self.assertEqual(list(record.tokens), [5, 6, 7])
        self.assertEqual(list(record.logprobs), [-1.0, -2.0])
        self.assertEqual(len(waybill.Record(model, "c", np.array([], object), 0).tokens), 0)
        made = waybill._abi.array([None, -1.0], "f4", (2,), "x")
        self.assertTrue(np.isnan(made[0]) and made[1] == -1)

    def test_what_was_written_is_read(self):
        random = support.random_for(self)
        for E, codec in ((8, "raw"), (8, "zstd"), (256, "raw"), (257, "raw"), (300, "zstd"), (64, "packed")):
            model = make_model(E=E)
            records = list(self.records(random, model))
            path = os.path.join(self.folder, f"{E}-{codec}.wbr")
            with waybill.create(path, model, codec=codec, chunk_bytes=64, producer="a test") as writer:
                for record in records:
                    writer.append(record)
            waybill.verify(path)
            dump = waybill.open(path)
            self.assertEqual(dump.model, model)
            self.assertEqual(dump.model.id_dtype.itemsize, 1 if E <= 256 else 2)
            self.assertEqual(dump.info.files_without_index, 0)
            for one, other in zip(records, dump):
                self.assert_same(one, other)
            # And once more, from the records that were read.
            with waybill.create(path + ".again.wbr", dump) as writer:
                for record in dump:
                    writer.append(record)
            for one, other in zip(records, waybill.open(path + ".again.wbr")):
                self.assert_same(one, other)

    def test_what_cannot_be_is_refused_and_nothing_written(self):
        random = support.random_for(self)
        model = make_model()
        path = os.path.join(self.folder, "a.wbr")
        writer = waybill.create(path, model)
        writer.append(make_record(random, model, "a"))
        routes = make_routes(random, model, 3)
        high, twice = routes.copy(), routes.copy()
        high[1, 2, 0] = model.num_experts
        twice[2, 0] = 5
        tokens = [1, 2, 3, 4]
        for expected, what, make in (
            (waybill.InvalidArgument, "rid a", lambda: make_record(random, model, "a")),
            (waybill.Mismatch, "experts", lambda: make_record(random, make_model(E=9), "b")),
            (waybill.InvalidArgument, "b", lambda: waybill.Record(model, "b", tokens, 1, routes=high)),
            (waybill.InvalidArgument, "b", lambda: waybill.Record(model, "b", tokens, 1, routes=twice)),
            (
                waybill.InvalidArgument,
                "b",
                lambda: waybill.Record(model, "b", tokens, 1, routes=routes, start=1),
            ),
            (
                waybill.InvalidArgument,
                "routes",
                lambda: waybill.Record(model, "b", tokens, 1, routes=routes[:, :2]),
            ),
            (
                waybill.InvalidArgument,
                "routes",
                lambda: waybill.Record(model, "b", tokens, 1, routes=routes - 300.0),
            ),
            (waybill.InvalidArgument, "fit", lambda: waybill.Record(model, "b", [-1, 2], 1)),
            (waybill.InvalidArgument, "fit", lambda: waybill.Record(model, "b", [1.5, 2], 1)),
            (waybill.InvalidArgument, "prompt_len", lambda: waybill.Record(model, "b", tokens, 5)),
            (
                waybill.InvalidArgument,
                "logprobs",
                lambda: waybill.Record(model, "b", tokens, 1, logprobs=[0.0]),
            ),
            (
                waybill.InvalidArgument,
                "record b: logprobs of position 2: expected a finite number, found -?nan",
                lambda: waybill.Record(model, "b", tokens, 1, logprobs=[-1, np.nan, -1]),
            ),
            (
                waybill.InvalidArgument,
                "record b: sampling_logprobs of position 3: expected a finite number, found -inf",
                lambda: waybill.Record(model, "b", tokens, 1, sampling_logprobs=[-1, -1, -np.inf]),
            ),
            (waybill.InvalidArgument, "finish", lambda: waybill.Record(model, "b", tokens, 1, finish="done")),
            (
                waybill.InvalidArgument,
                "span",
                lambda: waybill.Record(model, "b", tokens, 1, spans=[(0, -2, 0)]),
            ),
            (
                waybill.InvalidArgument,
                r"record b: span weight_version: expected spans of \(start, end, weight_version\)",
                lambda: waybill.Record(model, "b", tokens, 1, spans=[(0, 2)]),
            ),
            (
                waybill.InvalidArgument,
                r"record b: valid: expected shape \[3\], found \[2\]",
                lambda: waybill.Record(model, "b", tokens, 1, routes=routes, valid=[True, True]),
            ),
            (
                waybill.InvalidArgument,
                "record b: valid: expected 0 or 1 of each row, found 7",
                lambda: waybill.Record(model, "b", tokens, 1, routes=routes, valid=[1, 7, 0]),
            ),
            (
                waybill.InvalidArgument,
                "record b: logprobs: expected numbers, found complex numbers",
                lambda: waybill.Record(model, "b", tokens, 1, logprobs=[-1, -1, 1j]),
            ),
            (
                waybill.InvalidArgument,
                "record b: tokens: expected numbers, found str",
                lambda: waybill.Record(model, "b", np.array([1, "2", 3], object), 1),
            ),
            (
                waybill.InvalidArgument,
                "tokens: .*shape",
                lambda: waybill.Record(model, "b", [[1], [2, 3]], 1),
            ),
            (
                waybill.InvalidArgument,
                "rid: .*half a pair",
                lambda: waybill.Record(model, "\ud800", tokens, 1),
            ),
            (waybill.InvalidArgument, "NUL", lambda: waybill.Record(model, "b\0c", tokens, 1)),
            (waybill.InvalidArgument, "group", lambda: waybill.Record(model, "b", tokens, 1, group=-1)),
            (waybill.InvalidArgument, "model", lambda: waybill.Record("model", "b", tokens, 1)),
        ):
            with self.subTest(what), self.assertRaisesRegex(expected, what):
                writer.append(make())
        for wrong in ("x", None, routes, [make_record(random, model, "c")]):
            with self.assertRaisesRegex(TypeError, "Record, found " + type(wrong).__name__):
                writer.append(wrong)
        writer.append(make_record(random, model, "b"))
        writer.finish()
        self.assertEqual([record.rid for record in waybill.open(path)], ["a", "b"])
        with self.assertRaises(waybill.InvalidArgument):
            writer.append(make_record(random, model, "c"))
        with self.assertRaises(OSError):
            waybill.create(path, model)

    def test_an_unfinished_file_is_seen_as_one(self):
        random, model = support.random_for(self), make_model()
        records = [make_record(random, model, f"request-{i}") for i in range(2)]

        def left_by_an_exception(path):
            with self.assertRaisesRegex(KeyError, "mine"), waybill.create(path, model) as writer:
                for record in records:
                    writer.append(record)
                raise KeyError("mine")

        def forgotten(path):
            writer = waybill.create(path, model)
            for record in records:
                writer.append(record)
            with self.assertWarnsRegex(ResourceWarning, "not finished"):
                del writer
                gc.collect()

        def abandoned(path):
            writer = waybill.create(path, model)
            for record in records:
                writer.append(record)
            writer.abandon()
            writer.abandon()
            with self.assertRaisesRegex(waybill.InvalidArgument, "finished"):
                writer.append(records[0])

        def finished_before(path):
            with self.assertRaises(KeyError), waybill.create(path, model) as writer:
                for record in records:
                    writer.append(record)
                writer.finish()
                raise KeyError("mine")

        for way, without_index in (
            (left_by_an_exception, 1), (forgotten, 1), (abandoned, 1), (finished_before, 0),
        ):  # fmt: skip
            path = os.path.join(self.folder, way.__name__ + ".wbr")
            way(path)
            info = waybill.verify(path)
            self.assertEqual((info.records, info.files_without_index), (2, without_index), way.__name__)

    def test_models_that_cannot_be(self):
        good = {"L": 3, "E": 8, "K": 2}
        for wrong in (
            {"K": 9},
            {"K": -1},
            {"E": 0},
            {"E": 65537},
            {"E": 2**40},
            {"L": 0},
            {"name": "x" * 64},
            {"name": "a\0b"},
        ):
            with self.subTest(wrong), self.assertRaises(waybill.InvalidArgument):
                make_model(**{**good, **wrong})


if __name__ == "__main__":
    support.main()
