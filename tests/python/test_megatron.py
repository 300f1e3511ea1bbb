"""waybill.megatron: a model of Megatron-Core goes by the recorded routes in whatever order a schedule runs
forwards, backwards and recomputes; what would not ask or not obey is refused; a detached model is as it was.
On the CPU, with the stand-ins of examples/04_megatron.py."""

import importlib.util
import os
import unittest

import numpy as np
import support

import waybill

try:
    path = os.path.join(os.path.dirname(support.TESTS), "examples", "04_megatron.py")
    spec = importlib.util.spec_from_file_location("megatron_example", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    import torch
    from megatron.core.transformer.moe.router_replay import RouterReplay as FirstInFirstOut

    import waybill.megatron
except ImportError as error:
    print(f"skip: {error}")
    raise SystemExit(77) from None

DEVICE = example.start()
FULL = dict(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1)


class Example(unittest.TestCase):
    def setUp(self):
        self.random = support.random_for(self)
        torch.manual_seed(support.SEED)

    def attached(self, records=True, **settings):
        """A model, attached to a replay that has a record of each sequence of `self.batches`, with other
        routes than the model would choose."""
        model = example.build(DEVICE, **settings)
        self.maps = self.dispatched(model)
        recorded = example.routes_of(model.config)
        replay = waybill.megatron.replay_for(model, recorded)
        self.batches = torch.from_numpy(self.random.integers(0, example.VOCABULARY, (3, 2, 6))).to(DEVICE)
        for m, tokens in enumerate(self.batches.cpu() if records else ()):
            for b in range(2):
                routes = support.make_routes(self.random, recorded, 5)
                replay.add(
                    waybill.Record(
                        recorded,
                        f"{m}-{b}",
                        tokens[b].numpy(),
                        1,
                        finish="length",
                        routes=routes,
                        logprobs=np.zeros(5, np.float32),
                    )  # fmt: skip
                )
        return model, waybill.megatron.attach(model, replay)

    def dispatched(self, model):
        """What each MoE layer's dispatcher was given from here on, by layer: lists of [T, E] maps."""
        maps = {}
        for layer in model.decoder.layers:
            dispatcher = getattr(layer.mlp, "token_dispatcher", None)
            if dispatcher is not None:
                seen = maps.setdefault(layer.layer_number - 1, [])
                take = dispatcher.dispatch_preprocess

                def look(hidden, routing_map, probs, take=take, seen=seen):
                    seen.append((routing_map.clone(), probs.detach().clone()))
                    return take(hidden, routing_map, probs)

                dispatcher.dispatch_preprocess = look
        return maps


class Follows(Example):
    def test_every_token_goes_where_its_record_says(self):
        model, attached = self.attached()
        maps = self.maps
        example.train(model, attached, "rollout", self.batches)
        L = attached.replay.model.moe_layers
        self.assertEqual(sorted(maps), list(L))
        for index, number in enumerate(L):
            for m in range(3):
                routing_map = maps[number][m][0].view(6, 2, -1)
                for b in range(2):
                    expected = attached.replay[f"{m}-{b}"].routes[:, index]
                    for position in range(5):
                        found = routing_map[position, b].nonzero()[:, 0].tolist()
                        self.assertEqual(found, sorted(expected[position].tolist()))
        self.assertEqual(attached.replay.metrics().forced_rows, 30)

    def gradients(self, model, attached, mode="rollout"):
        losses = example.train(model, attached, mode, self.batches)
        return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def test_recomputed_in_any_order_it_is_the_same(self):
        for mode in ("rollout", "record"):
            found = []
            for settings in ({}, FULL, dict(recompute_granularity="selective", recompute_modules=["moe"])):
                torch.manual_seed(support.SEED)
                self.random = np.random.default_rng(support.SEED)
                found.append(self.gradients(*self.attached(**settings), mode))
            for losses, gradients in found[1:]:
                self.assertTrue(torch.equal(losses, found[0][0]))
                self.assertEqual(sorted(gradients), sorted(found[0][1]))
                for name, gradient in gradients.items():
                    # A checkpoint adds up the gradients of a residual in another order: sums of two or three.
                    other = found[0][1][name]
                    error = 16 * 2**-24 * float(other.abs().max())
                    self.assertTrue(bool(((gradient - other).abs() <= error).all()), name)

    def test_its_own_routes_recorded_are_its_own_loss(self):
        model, attached = self.attached(records=False)
        with attached.native():
            native = torch.stack([-example.forward(model, tokens).mean().detach() for tokens in self.batches])
        records = example.record(model, attached, self.batches)
        for record in records:
            attached.replay.add(record)
        self.assertTrue(torch.equal(example.train(model, attached, "rollout", self.batches), native))
        metrics = attached.replay.metrics()
        self.assertEqual((metrics.forced_rows, metrics.token_differ), (30, 0))

    def test_sigmoid_groups_and_a_bias(self):
        settings = dict(moe_router_score_function="sigmoid", moe_router_topk_scaling_factor=2.5)
        groups = dict(moe_router_num_groups=4, moe_router_group_topk=2, moe_router_enable_expert_bias=True)
        model = example.build(DEVICE, **settings, **groups, moe_router_pre_softmax=True)
        recorded = example.routes_of(model.config)
        recorded = waybill.RouteModel("v3", "0" * 32, "sigmoid", 4, recorded.moe_layers, 16, 4)
        with self.assertRaisesRegex(waybill.Mismatch, "router"):
            waybill.megatron.attach(
                model, waybill.megatron.replay_for(model, example.routes_of(model.config))
            )
        attached = waybill.megatron.attach(model, waybill.megatron.replay_for(model, recorded))
        tokens = torch.from_numpy(self.random.integers(0, example.VOCABULARY, (1, 2, 6))).to(DEVICE)
        made = example.record(model, attached, tokens)
        maps = self.dispatched(model)
        for record in made:
            attached.replay.add(record)
        for layer in model.decoder.layers[1:]:
            layer.mlp.router.expert_bias[:3] += 10  # the model would choose others now
        example.train(model, attached, "rollout", tokens)
        self.assertEqual(attached.replay.metrics().token_differ, 1)
        for index, number in enumerate(recorded.moe_layers):
            probs = maps[number][0][1].view(6, 2, -1)[:5].sum(-1)
            self.assertTrue(torch.allclose(probs, torch.full_like(probs, 2.5), atol=1e-5))

    def test_padding_and_parts_of_a_sequence(self):
        model, attached = self.attached()
        tokens = torch.nn.functional.pad(self.batches[0], (1, 1))
        mask = torch.zeros_like(tokens)
        mask[:, 1:7] = 1
        with attached.replay.step("rollout", 1):
            attached.plan(0, ["0-0", "0-1"], tokens, mask)
            with attached.micro_batch(0):
                example.forward(model, tokens).sum().backward()
        for seen in self.maps.values():
            weights = seen[0][1].view(8, 2, -1).sum(-1)
            self.assertTrue((weights[[0, 7]] == 0).all())
            self.assertTrue((weights[1:7] > 0.5).all())
            self.assertTrue((seen[0][0].sum(1) == 4).all())
        seen = [waybill.megatron.positions(12, cp, 2, tp, 3).tolist() for cp in range(2) for tp in range(3)]
        self.assertEqual(seen, [[0, 1], [2, 9], [10, 11], [3, 4], [5, 6], [7, 8]])
        with self.assertRaises(waybill.InvalidArgument):
            waybill.megatron.positions(10, 0, 2)
        attached.replay.begin("rollout", 1)
        attached.plan(0, ["0-0", "0-1"], self.batches[0], places=[0, 1, 4])
        for index in range(3):
            found = attached.replay.rows(0, index)
            rows = [attached.replay[f"0-{b}"].routes[t, index] for t in (0, 1, 4) for b in range(2)]
            np.testing.assert_array_equal(found.ids, rows)
        attached.replay.abort()


class Refuses(Example):
    def test_what_would_not_ask_or_not_obey(self):
        model, attached = self.attached()
        attached.detach()
        for name, value in (
            ("moe_router_fusion", True),
            ("moe_router_load_balancing_type", "sinkhorn"),
            ("moe_router_load_balancing_type", ["aux_loss", "quantile_balancing"]),
            ("moe_expert_capacity_factor", 1.0),
            ("moe_router_force_load_balancing", True),
            ("cuda_graph_impl", "local"),
        ):
            before = getattr(model.config, name)
            setattr(model.config, name, value)
            with self.subTest(name), self.assertRaisesRegex(waybill.Unsupported, name):
                waybill.megatron.attach(model, attached.replay)
            setattr(model.config, name, before)
        for what, wrong in (
            ("model: .*Module, found list", lambda: waybill.megatron.attach([model], attached.replay)),
            ("model: .*Module, found list", lambda: waybill.megatron.replay_for([model], attached.replay)),
            ("replay: expected a waybill.Replay, found str", lambda: waybill.megatron.attach(model, "x")),
        ):
            with self.subTest(what), self.assertRaisesRegex(TypeError, what):
                wrong()

    def test_a_router_that_goes_its_own_way_fails_the_step(self):
        model, attached = self.attached()
        router = model.decoder.layers[2].mlp.router
        with attached.replay.step("rollout", 1):
            attached.plan(0, ["0-0", "0-1"], self.batches[0])
            own, router.router_replay = router.router_replay, None  # as a fused one does not ask
            with attached.micro_batch(0), self.assertRaisesRegex(waybill.Mismatch, "layers.2.*did not ask"):
                example.forward(model, self.batches[0])
            router.router_replay = own
            with attached.micro_batch(0):
                example.forward(model, self.batches[0])
        routing = router.routing
        router.routing = lambda *args, **kwargs: [x.roll(1, -1) for x in routing(*args, **kwargs)]
        with self.assertRaisesRegex(waybill.Mismatch, "micro-batch 0, row 0"):
            example.train(model, attached, "rollout", self.batches)

    def test_forwards_that_nobody_planned(self):
        model, attached = self.attached()
        with self.assertRaisesRegex(waybill.InvalidArgument, "outside of Attached.micro_batch"):
            example.forward(model, self.batches[0])
        with self.assertRaisesRegex(waybill.InvalidArgument, "12 rows of its plan, found 10"):
            with attached.replay.step("rollout", 1):
                attached.plan(0, ["0-0", "0-1"], self.batches[0])
                with attached.micro_batch(0):
                    example.forward(model, self.batches[0][:, :5])
        with self.assertRaisesRegex(waybill.InvalidArgument, "attached to a replay already"):
            waybill.megatron.attach(model, attached.replay)
        other = waybill.RouteModel("x", "0" * 32, "softmax_norm", 4, (0, 1, 2, 3), 16, 4)
        with self.assertRaisesRegex(waybill.Mismatch, "layers"):
            waybill.megatron.attach(example.build(DEVICE), waybill.Replay(other))

    def test_detached_it_is_as_it_was(self):
        model = example.build(DEVICE, moe_enable_routing_replay=True)
        routers = [layer.mlp.router for layer in model.decoder.layers[1:]]
        before = [router.router_replay for router in routers]
        self.assertTrue(all(isinstance(replay, FirstInFirstOut) for replay in before))
        replay = waybill.megatron.replay_for(model, example.routes_of(model.config))
        tokens = torch.from_numpy(self.random.integers(0, example.VOCABULARY, (2, 6))).to(DEVICE)
        native = example.forward(model, tokens)
        attached = waybill.megatron.attach(model, replay)
        attached.detach()
        self.assertEqual([router.router_replay for router in routers], before)
        for layer in model.decoder.layers[1:]:
            self.assertNotIn("dispatch_preprocess", vars(layer.mlp.token_dispatcher))
        self.assertTrue(torch.equal(example.forward(model, tokens), native))


if __name__ == "__main__":
    support.main()
