"""waybill.eplb: loads are the records' counts, placements and what is read from them agree with sums made
here, move plans executed on simulated slots arrive, files are read again."""

import json
import os
import tempfile
import unittest

import numpy as np
import support
from support import golden, make_model, make_record

import waybill
from waybill import eplb


class Loads(unittest.TestCase):
    def test_of_a_dump(self):
        for path in golden("good_*.wbr"):
            dump = waybill.open(path)
            model = dump.model
            expected = sum(record.counts() for record in dump)[:, : model.weighted]
            for n_batches in (1, 3):
                found = eplb.loads(dump, n_batches)
                self.assertEqual(found.shape, (n_batches, model.n_moe_layers, model.weighted))
                np.testing.assert_array_equal(found.sum(0), expected)
            by_hand = np.zeros((model.n_moe_layers, model.num_experts), np.uint64)
            ends = np.cumsum([model.layer_k(layer) for layer in range(model.n_moe_layers)])
            for record in dump:
                ids = record.routes[record.valid].reshape(-1, ends[-1])
                for layer, of_layer in enumerate(np.split(ids, ends[:-1], axis=1)):
                    np.add.at(by_hand[layer], of_layer.ravel(), 1)
            np.testing.assert_array_equal(by_hand[:, : model.weighted], expected)
            np.testing.assert_array_equal(
                eplb.loads(dump, records=[1])[0], dump[1].counts()[:, : model.weighted]
            )
            for wrong in (list(dump), dump[0], "dump", None):
                with self.assertRaisesRegex(TypeError, "waybill.Dump, .*found " + type(wrong).__name__):
                    eplb.loads(wrong)
            for wrong in (
                {"records": [len(dump)]},
                {"records": [-1]},
                {"n_batches": 0},
                {"n_batches": 2**32 + 1},
            ):
                with self.assertRaises(waybill.InvalidArgument):
                    eplb.loads(dump, **wrong)

    def test_of_files(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "counts.json")
            counts = np.arange(24).reshape(2, 3, 4)
            with open(path, "w") as file:
                json.dump({"logical_count": counts.tolist()}, file)
            found = eplb.read_counts([path, path])
            np.testing.assert_array_equal(found.loads, 2 * counts)
            self.assertTrue(found.informed.all())
            np.testing.assert_array_equal(eplb.read_counts(path, [0, 2, 5]).layers, [0, 2, 5])
            with self.assertRaisesRegex(waybill.Error, "counts.json"):
                eplb.read_counts(path, [0, 1], n_hidden=5)


class Placements(unittest.TestCase):
    def setUp(self):
        self.random = support.random_for(self)
        self.topology = eplb.Topology(4, 24, n_nodes=2)
        self.loads = self.random.integers(0, 1000, (3, 5, 16)).astype(np.float64)

    def test_every_solver(self):
        total = self.loads.sum(0)
        trivial = eplb.Placement.trivial(self.topology, 5, 16)
        for algorithm in ("deepseek", "balanced", "incremental", "microbatch"):
            with self.subTest(algorithm):
                current = trivial if algorithm == "incremental" else None
                found = eplb.solve(self.topology, self.loads, algorithm, current=current, trials=2000)
                maps, replicas = found.expert_of_slot, found.tables()[1]
                self.assertEqual(maps.shape, (5, 24))
                for layer in range(5):
                    counts = np.bincount(maps[layer][maps[layer] >= 0], minlength=16)
                    np.testing.assert_array_equal(counts, replicas[layer])
                    self.assertTrue((counts > 0).all())
                share = np.where(maps >= 0, np.take_along_axis(total / replicas, maps.clip(0), 1), 0)
                by_rank = share.reshape(5, 4, 6).sum(-1)
                np.testing.assert_allclose(found.rank_loads(self.loads), by_rank, rtol=1e-12)
                np.testing.assert_allclose(
                    found.balancedness(total), by_rank.mean(1) / by_rank.max(1), rtol=1e-12
                )
                self.assertEqual(found.hash, found.clone().hash)
                self.assertNotEqual(found.hash, trivial.hash)

    def test_a_layer_without_counts_keeps_its_map(self):
        self.loads[:, 2] = 0
        found = eplb.solve(self.topology, self.loads, trials=1000)
        trivial = eplb.Placement.trivial(self.topology, 5, 16)
        np.testing.assert_array_equal(found.expert_of_slot[2], trivial.expert_of_slot[2])

    def test_tables(self):
        found = eplb.solve(self.topology, self.loads, trials=1000)
        maps, (slots, replicas) = found.expert_of_slot, found.tables()
        for layer in range(5):
            dynamic = found.dispatch_table(layer, policy="dynamic")
            for rank in range(4):
                table = found.dispatch_table(layer, rank)
                np.testing.assert_array_equal(maps[layer][table], np.arange(16))
            for expert in range(16):
                of = slots[layer, expert][: replicas[layer, expert]]
                np.testing.assert_array_equal(maps[layer][of], expert)
                begin, end = dynamic[expert : expert + 2]
                np.testing.assert_array_equal(dynamic[17:][begin:end], of)
            counts = self.random.integers(0, 50, (4, 16))
            quota = found.quota(layer, counts)
            shares = [quota[maps[layer] == expert].sum() for expert in range(16)]
            np.testing.assert_array_equal(shares, counts.sum(0))
        for wrong in (
            lambda: found.quota(5, counts),
            lambda: found.dispatch_table(5),
            lambda: found.dispatch_table(-1),
            lambda: found.dispatch_table(0, 4),
            lambda: found.dispatch_table(0, 0, "quota"),
        ):
            with self.assertRaises(waybill.InvalidArgument):
                wrong()

    def test_a_move_plan_arrives(self):
        one = eplb.Placement.trivial(self.topology, 5, 16)
        to = eplb.solve(self.topology, self.loads, trials=2000)
        plan = eplb.move_plan(one, to)
        self.assertGreater(len(plan.moves), 0)
        held, arriving = one.expert_of_slot, one.clone()
        for i, group in enumerate(plan.groups):
            moves = plan.moves[group.begin : group.end]
            self.assertTrue((moves["layer"] == group.layer).all())
            read = held[group.layer][moves["from"]]
            np.testing.assert_array_equal(read, moves["expert"])
            held[group.layer][moves["to"]] = read
            plan.apply(i, arriving)
            now = arriving.expert_of_slot[group.layer]
            np.testing.assert_array_equal(held[group.layer][now >= 0], now[now >= 0])
        for layer in range(5):
            for rank in range(4):
                part = slice(6 * rank, 6 * rank + 6)
                found, expected = arriving.expert_of_slot[layer, part], to.expert_of_slot[layer, part]
                self.assertEqual(sorted(found), sorted(expected))
        self.assertEqual(len(eplb.move_plan(one, one).moves), 0)
        with self.assertRaises(waybill.InvalidArgument):
            plan.apply(len(plan.groups), arriving)

    def test_files_are_read_again(self):
        found = eplb.solve(self.topology, self.loads, "deepseek")
        with tempfile.TemporaryDirectory() as folder:
            for layout in ("sglang", "vllm", "trtllm", "ascend"):
                path = os.path.join(folder, layout + ".json")
                found.save(path, layout)
                again = eplb.read(path, self.topology, 5, 16)
                np.testing.assert_array_equal(again.expert_of_slot, found.expert_of_slot)
                self.assertIn({"trtllm": "tensorrt"}.get(layout, layout), again.layout.lower())
            with self.assertRaisesRegex(waybill.Mismatch, "sglang.json"):
                eplb.read(os.path.join(folder, "sglang.json"), self.topology, 6, 16)

    def test_what_cannot_be_is_refused(self):
        for wrong in (
            lambda: eplb.solve(eplb.Topology(4, 15), self.loads),
            lambda: eplb.solve(eplb.Topology(4, -1), self.loads),
            lambda: eplb.solve(eplb.Topology(4, 2**32 + 24), self.loads),
            lambda: eplb.Topology(4, 24, slots_of_rank=[6, 6, 12]),
            lambda: eplb.solve(self.topology, self.loads * np.nan),
            lambda: eplb.solve(self.topology, self.loads, "best"),
            lambda: eplb.solve(self.topology, self.loads[0, 0]),
            lambda: eplb.Placement.trivial(self.topology, 0, 16),
            lambda: eplb.Placement.trivial(self.topology, 5, 16).set_layer(0, [0] * 24),
            lambda: eplb.Placement.trivial(self.topology, 5, 16).set_layer(7, [0] * 24),
            lambda: eplb.Placement.trivial(self.topology, 5, 16).rank_loads(self.loads[..., :15]),
        ):
            with self.assertRaises(waybill.InvalidArgument):
                wrong()

    def test_dead_ranks_hold_nothing(self):
        topology = eplb.Topology(4, 24, dead=[False, True, False, False])
        found = eplb.solve(topology, self.loads, trials=1000)
        self.assertTrue((found.expert_of_slot[:, 6:12] == -1).all())
        self.assertEqual(found.topology.dead, [False, True, False, False])

    def test_from_routes_to_be_replayed(self):
        model = make_model(L=5, E=16)
        records = [make_record(self.random, model, f"r{i}") for i in range(10)]
        packed = waybill.pack(records, 60)
        found = eplb.solve(self.topology, packed.loads, "microbatch", trials=1000)
        replay = waybill.Replay(model, placement=found)
        replay.begin("off", 1)
        del found
        replay.plan(0, [waybill.Padding(8)])
        self.assertEqual(replay.rows(0, 0).ids.shape, (8, 2))


if __name__ == "__main__":
    support.main()
