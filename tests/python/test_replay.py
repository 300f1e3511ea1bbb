"""waybill.Replay and waybill.pack: routes of a plan are those of the records, what was not followed or is not
the record's is refused, metrics are what one counts by hand."""

import gc
import unittest

import numpy as np
import support
from support import make_model, make_record, make_routes

import waybill

NATIVE, FORCED, PADDING = 0, 1, 2


class Plans(unittest.TestCase):
    def setUp(self):
        self.random = support.random_for(self)
        self.model = make_model(E=11, K=3)
        self.records = [make_record(self.random, self.model, f"r{i}", n) for i, n in enumerate((5, 2, 9))]
        self.replay = waybill.Replay(self.model)
        for record in self.records:
            self.replay.add(record)

    def plan(self, micro_batch=0, padding=4):
        segments = [waybill.Rows(record.rid, record.tokens) for record in self.records]
        self.replay.plan(micro_batch, [*segments, waybill.Padding(padding)])

    def follow(self, micro_batch, choose=None):
        """Routes every row as planned, and those that choose to `choose`; where each row would have gone, by
        layer."""
        native = make_routes(self.random, self.model, sum(map(len, self.records)) + 4)
        for layer in range(self.model.n_moe_layers):
            planned = self.replay.rows(micro_batch, layer)
            used = planned.ids.copy()
            used[planned.direction == NATIVE] = native[planned.direction == NATIVE, layer]
            self.replay.store(micro_batch, layer, used, native[:, layer])
        return native

    def test_rows_are_the_records(self):
        self.replay.begin("rollout", 2)
        self.plan(1)
        everything = self.replay.rows(1, waybill.ALL_LAYERS)
        expected = np.zeros(self.model.num_experts, np.int64)
        for layer in range(self.model.n_moe_layers):
            at = 0
            found = self.replay.rows(1, layer)
            expected[:] = 0
            for record in self.records:
                rows = len(record) - 1
                np.testing.assert_array_equal(found.ids[at : at + rows], record.routes[:, layer])
                np.testing.assert_array_equal(everything.ids[at : at + rows, layer], record.routes[:, layer])
                np.testing.assert_array_equal(found.direction[at : at + rows], FORCED)
                expected += np.bincount(record.routes[:, layer].ravel(), minlength=self.model.num_experts)
                self.assertEqual(found.direction[at + rows], NATIVE)
                at += rows + 1
            np.testing.assert_array_equal(found.direction[at:], PADDING)
            part = self.replay.rows(1, layer, 3, 6)
            np.testing.assert_array_equal(part.ids, found.ids[3:9])
            np.testing.assert_array_equal(self.replay.counts(1, layer), expected)
        with self.assertRaisesRegex(waybill.InvalidArgument, "not planned"):
            self.replay.rows(0, 0)
        for layer in (self.model.n_moe_layers, 2**32, 2**63):
            with self.assertRaises(waybill.InvalidArgument):
                self.replay.rows(1, layer)

    def test_a_slice_is_the_callers_own(self):
        self.replay.begin("rollout", 1)
        self.plan()
        kept = self.replay.rows(0, 0)
        self.assertIsNone(kept.ids.base)
        self.assertIsNone(kept.direction.base)
        before = kept.ids.copy(), kept.direction.copy()
        self.replay.clear()
        del self.replay
        gc.collect()
        np.testing.assert_array_equal(kept.ids, before[0])
        np.testing.assert_array_equal(kept.direction, before[1])

    def test_records_live_as_long_as_the_replay(self):
        expected = [record.routes.copy() for record in self.records]
        rids, tokens = (
            [record.rid for record in self.records],
            [record.tokens.copy() for record in self.records],
        )
        self.records.clear()
        gc.collect()
        self.replay.begin("rollout", 1)
        self.replay.plan(0, [waybill.Rows(*segment) for segment in zip(rids, tokens)])
        found = self.replay.rows(0, 1)
        np.testing.assert_array_equal(found.ids[found.direction == FORCED], np.concatenate(expected)[:, 1])

    def test_metrics_are_what_one_counts(self):
        self.replay.begin("rollout", 1)
        self.plan()
        native = self.follow(0)
        self.replay.end()
        forced = np.concatenate([record.routes for record in self.records])
        starts = np.cumsum([0, *(len(record) for record in self.records)])
        at = np.concatenate([np.arange(s, s + len(r) - 1) for s, r in zip(starts, self.records)])
        same = (forced[..., None] == native[at][..., None, :]).any(-1)
        by_layer = self.replay.layer_metrics()
        n, chose = len(forced), len(self.records)
        np.testing.assert_array_equal(by_layer["tokens"], n)
        np.testing.assert_allclose(by_layer["overlap"], same.mean((0, 2)), rtol=1e-12)
        np.testing.assert_allclose(by_layer["differ"], (~same).any(-1).mean(0), rtol=1e-12)
        metrics = self.replay.metrics()
        balance = np.zeros((2, self.model.n_moe_layers))
        for layer in range(self.model.n_moe_layers):
            for i, (load, ids) in enumerate(zip(self.replay.load(layer), (forced, native[at]))):
                expected = np.bincount(ids[:, layer].ravel(), minlength=self.model.num_experts)
                np.testing.assert_array_equal(load, expected)
                balance[i, layer] = expected.mean() / expected.max()
        np.testing.assert_allclose(by_layer["forced_balancedness"], balance[0], rtol=1e-12)
        np.testing.assert_allclose(by_layer["native_balancedness"], balance[1], rtol=1e-12)
        self.assertAlmostEqual(metrics.forced_balancedness, balance[0].mean(), places=12)
        self.assertAlmostEqual(metrics.native_balancedness, balance[1].mean(), places=12)
        with self.assertRaises(waybill.InvalidArgument):
            self.replay.load(self.model.n_moe_layers)
        self.assertEqual((metrics.rows, metrics.forced_rows, metrics.padding_rows), (n + chose + 4, n, 4))
        self.assertAlmostEqual(metrics.token_differ, (~same).any((1, 2)).mean(), places=12)
        self.assertAlmostEqual(metrics.decision_differ, (~same).any(-1).mean(), places=12)

    def test_log_probabilities(self):
        then, now = self.random.random((2, 50)).astype(np.float32)
        mask = self.random.random(50) < 0.5
        mask[:2] = True, False
        self.replay.begin("off", 1)
        self.replay.observe_logprobs(then, now, mask)
        log_r = (then.astype(np.float64) - now)[mask]
        metrics = self.replay.metrics()
        self.assertEqual(metrics.logprobs, mask.sum())
        self.assertAlmostEqual(metrics.kl_k1, log_r.mean(), places=6)
        self.assertAlmostEqual(metrics.kl_k3, (np.exp(-log_r) - 1 + log_r).mean(), places=6)
        sums = self.replay.metric_sums()
        sums *= 2  # another rank with the same tokens
        self.assertEqual(self.replay.metrics().logprobs, 2 * mask.sum())
        self.assertAlmostEqual(self.replay.metrics().kl_k1, log_r.mean(), places=6)
        with self.assertRaises(waybill.InvalidArgument):
            self.replay.observe_logprobs(then, now[:-1])

    def test_a_step_that_was_not_followed_does_not_end(self):
        self.replay.begin("rollout", 1)
        self.plan()
        with self.assertRaisesRegex(waybill.Mismatch, "micro-batch 0, MoE layer 0"):
            self.replay.end()
        used = self.replay.rows(0, 1).ids.copy()
        used[0] = used[0][::-1]
        with self.assertRaisesRegex(waybill.Mismatch, "row 0"):
            self.replay.store(0, 1, used)
        with self.assertRaisesRegex(waybill.InvalidArgument, "open"):
            self.replay.begin("rollout", 1)
        self.follow(0)
        self.replay.end()
        self.replay.begin("rollout", 1)
        self.replay.abort()

    def test_what_is_not_the_records_is_refused(self):
        record = self.records[2]
        other = make_record(self.random, make_model(E=12, K=3), "other")
        with self.assertRaises(waybill.Mismatch):
            self.replay.add(other)
        with self.assertRaisesRegex(waybill.InvalidArgument, "r2"):
            self.replay.add(record)
        self.replay.begin("rollout", 1)
        tokens = record.tokens.copy()
        tokens[3] += 1
        for expected, segment in (
            (waybill.Mismatch, waybill.Rows("r2", tokens)),
            (waybill.Mismatch, waybill.Rows("r2", record.tokens[1:])),
            (waybill.NotFound, waybill.Rows("nobody", tokens)),
            (waybill.InvalidArgument, waybill.Rows("r2", record.tokens, start=1)),
            (waybill.InvalidArgument, waybill.Rows("r2", record.tokens, start=-1)),
            (waybill.InvalidArgument, waybill.Padding(-1)),
            (waybill.InvalidArgument, "r2"),
        ):
            with self.subTest(segment), self.assertRaises(expected):
                self.replay.plan(0, [segment])
        self.assertFalse(self.replay.planned(0))
        self.replay.plan(0, [waybill.Rows("r2", record.tokens[1:], start=1)])
        self.assertTrue(self.replay.planned(0))

    def test_missing_rows_go_by_the_policy(self):
        valid = np.ones(8, bool)
        valid[3] = False
        routes = make_routes(self.random, self.model, 8)
        record = make_record(self.random, self.model, "gap", 9, routes=routes, valid=valid)
        for missing in ("strict", "native", "drop"):
            replay = waybill.Replay(self.model, missing=missing)
            replay.add(record)
            replay.begin("rollout", 1)
            segments = [waybill.Padding(1), waybill.Rows("gap", record.tokens)]
            if missing == "strict":
                with self.assertRaisesRegex(waybill.MissingRoutes, "gap.*position 3"):
                    replay.plan(0, segments)
                continue
            replay.plan(0, segments)
            directions = replay.rows(0, 0).direction
            self.assertEqual([i for i, d in enumerate(directions) if d == NATIVE], [4, 9])
            self.assertEqual([replay.dropped(0, i) for i in range(2)], [False, missing == "drop"])

    def test_the_trainers_own_choice_is_kept(self):
        self.replay.begin("record", 1)
        self.plan()
        self.assertTrue(self.replay.rows(0, 0).undecided)
        native = self.follow(0)
        again = self.replay.rows(0, 2)
        self.assertFalse(again.any_native)
        np.testing.assert_array_equal(again.ids[again.direction == FORCED], native[:-4, 2])
        self.replay.end()

    def test_a_stage_has_its_layers(self):
        replay = waybill.Replay(self.model, first_layer=1, n_layers=1)
        replay.add(self.records[0])
        replay.begin("rollout", 1)
        replay.plan(0, [waybill.Rows("r0", self.records[0].tokens[:-1])])
        np.testing.assert_array_equal(replay.rows(0, 1).ids, self.records[0].routes[:, 1])
        for layer in (0, 2, 3):
            with self.assertRaises(waybill.InvalidArgument):
                replay.rows(0, layer)
        replay.store(0, 1, replay.rows(0, 1).ids)
        replay.end()


class Packing(unittest.TestCase):
    def test_every_record_has_a_place_and_loads_are_its_routes(self):
        random = support.random_for(self)
        model = make_model()
        records = [make_record(random, model, f"r{i}") for i in range(30)]
        update = [int(u) for u in random.integers(0, 2, 30)]
        update[:2] = 0, 1
        packed = waybill.pack(records, 40, update=update, n_updates=2)
        places = sorted(place for batch in packed.micro_batches for place in batch)
        self.assertEqual(places, [(i, len(record)) for i, record in enumerate(records)])
        self.assertEqual(packed.first[0], 0)
        self.assertEqual(packed.first[-1], len(packed.micro_batches))
        for m, batch in enumerate(packed.micro_batches):
            self.assertLessEqual(sum(rows for _, rows in batch), 40)
            for i, _ in batch:
                self.assertTrue(packed.first[update[i]] <= m < packed.first[update[i] + 1])
            expected = sum(
                (records[i].counts() for i, _ in batch), np.zeros(packed.loads.shape[1:], np.uint64)
            )
            np.testing.assert_array_equal(packed.loads[m], expected)
        with self.assertRaises(waybill.InvalidArgument):
            waybill.pack(records, 3)
        with self.assertRaises(waybill.InvalidArgument):
            waybill.pack([])
        for name in ("rows", "update"):
            for given in ([1], [1] * (len(records) + 1)):
                expected = f"{name}: expected {len(records)}, one a record, found {len(given)}"
                with self.assertRaisesRegex(waybill.InvalidArgument, expected):
                    waybill.pack(records, 40, **{name: given})
        for wrong in (["x"], [records[0], None]):
            with self.assertRaisesRegex(TypeError, "expected a waybill.Record"):
                waybill.pack(wrong)
        with self.assertRaisesRegex(TypeError, "expected a waybill.Record"):
            waybill.Replay(records[0].model).add("x")


if __name__ == "__main__":
    support.main()
