"""waybill.torch: gate and gradient equal the formula written in torch, whatever runs the graph: eager,
checkpoints of both kinds, torch.compile; steps that were not followed fail. The same on every device that is
here."""

import gc
import unittest

import numpy as np
import support
from support import make_model, make_record, make_routes

import waybill

try:
    import torch
    from torch.utils.checkpoint import checkpoint

    import waybill.torch
    from waybill.torch import Router, RouterReplay
except ImportError as error:
    print(f"skip: {error}")
    raise SystemExit(77) from None

ROUTERS = (
    Router("softmax"),
    Router("softmax", scale=2.5, n_group=4, topk_group=2),
    Router("softmax_norm"),
    Router("topk_softmax", scale=0.5),
    Router("sigmoid", scale=1.5, n_group=4, topk_group=2),
    Router("sigmoid", normalize=False),
    Router("sqrtsoftplus", scale=1.5),
)


def devices():
    found = ["cpu"]
    try:
        waybill.torch.RouterReplay(make_model(), device="cuda")
        found.append("cuda")
    except (waybill.Error, AssertionError, RuntimeError) as error:
        print(f"no cuda: {error}")
    return found


DEVICES = devices()


def weights_of(router, logits, ids):
    """The formulas of the package's Router, in torch, of ids however chosen."""
    if router.type == "softmax":
        return router.scale * torch.softmax(logits, -1).gather(-1, ids)
    if router.type in ("softmax_norm", "topk_softmax"):
        return router.scale * torch.softmax(logits.gather(-1, ids), -1)
    scores = (
        torch.sigmoid(logits)
        if router.type == "sigmoid"
        else torch.sqrt(torch.nn.functional.softplus(logits))
    )
    picked = scores.gather(-1, ids)
    return router.scale * (picked / (picked.sum(-1, keepdim=True) + 1e-20) if router.normalize else picked)


def close(one, other):
    """Within what two orders of float32 sums of 16 terms differ by; NaN is never close."""
    return bool(((one - other).abs() <= 1e-5 * (1 + other.abs())).all())


class Gate(unittest.TestCase):
    def setUp(self):
        self.random = support.random_for(self)

    def prepare(self, device, router=None, E=16, **options):
        """Two requests, a padding row in between, and the logits of each layer."""
        router = router or Router("softmax_norm")
        model = make_model(E=E, K=4, router=router.type)
        replay = RouterReplay(model, router=router, device=device, **options)
        records = [make_record(self.random, model, f"r{i}", n) for i, n in enumerate((7, 5))]
        self.records = records
        for record in records:
            replay.add(record)
        self.segments = [
            waybill.Rows("r0", records[0].tokens),
            waybill.Padding(1),
            waybill.Rows("r1", records[1].tokens),
        ]
        self.forced = [i for i in range(13) if i not in (6, 7, 12)]
        # No two alike in a row, so that a choice by logits is one that torch makes too.
        order = torch.from_numpy(np.argsort(self.random.random((model.n_moe_layers, 13, E)), -1))
        logits = torch.linspace(-3, 3, E)[order]
        expected = np.concatenate([record.routes for record in records])
        return replay, logits.to(device), torch.from_numpy(expected.astype(np.int64)).to(device)

    def test_every_router_forward_and_backward(self):
        for device in DEVICES:
            for router in ROUTERS:
                with self.subTest(device=device, router=router):
                    self.one_router(device, router)

    def one_router(self, device, router):
        bias = None
        if router.type in ("sigmoid", "sqrtsoftplus"):
            bias = [torch.linspace(-1, 1, 16, device=device) for _ in range(3)]
        replay, logits, expected = self.prepare(device, router, bias=bias)
        with replay.step("rollout", 1):
            replay.plan(0, self.segments)
            for layer in range(3):
                z = logits[layer].clone().requires_grad_()
                ids, weights = replay.gate(z, 0, layer)
                ids = replay.dispatched(ids, 0, layer)
                self.assertEqual((ids.dtype, weights.dtype), (torch.int64, torch.float32))
                self.assertTrue(torch.equal(ids[self.forced], expected[:, layer]))
                self.assertTrue((weights[7] == 0).all())
                again = logits[layer].clone().requires_grad_()
                formula = weights_of(router, again, ids)
                formula = formula * (torch.arange(13, device=device) != 7)[:, None]
                self.assertTrue(close(weights, formula))
                pull = torch.randn(weights.shape, generator=torch.Generator().manual_seed(layer)).to(device)
                (weights * pull).sum().backward()
                (formula * pull).sum().backward()
                self.assertTrue(close(z.grad, again.grad))
                self.assertGreater(float(z.grad.abs().max()), 0)
                self.assertTrue((z.grad[7] == 0).all())

    def test_rows_that_choose_choose_as_torch_does(self):
        for device in DEVICES:
            replay, logits, _ = self.prepare(device)
            for mode in ("off", "record"):
                with replay.step(mode, 1):
                    replay.plan(0, self.segments)
                    for layer in range(3):
                        ids, _ = replay.gate(logits[layer], 0, layer)
                        replay.dispatched(ids, 0, layer)
                        rows = [i for i in range(13) if i != 7]
                        self.assertTrue(torch.equal(ids[rows], logits[layer].topk(4).indices[rows]))
                        # Later passes follow the first one, but in mode off.
                        other, _ = replay.gate(-logits[layer], 0, layer)
                        replay.dispatched(other, 0, layer)
                        self.assertEqual(torch.equal(other[rows], ids[rows]), mode == "record")

    def test_ids_of_two_bytes_and_other_logits(self):
        for device in DEVICES:
            for E, dtype in ((300, torch.bfloat16), (300, torch.float16), (65536, torch.float32)):
                replay, logits, expected = self.prepare(device, E=E)
                with replay.step("rollout", 1):
                    replay.plan(0, self.segments)
                    for layer in range(3):
                        z = logits[layer].to(dtype).view(1, 13, -1).requires_grad_()
                        ids, weights = replay.gate(z, 0, layer)
                        replay.dispatched(ids, 0, layer)
                        self.assertTrue(torch.equal(ids[self.forced], expected[:, layer]))
                        formula = weights_of(replay.router, z.detach().float()[0], ids)
                        self.assertTrue(close(weights[self.forced], formula[self.forced]))
                        weights.square().sum().backward()
                        self.assertEqual((z.grad.dtype, z.grad.shape), (dtype, z.shape))
                if E == 65536:
                    self.assertGreater(int(expected.max()), 2**15)

    def layer(self, replay, router_weight, hidden, micro_batch, layer):
        """A MoE layer that keeps its choice in what it returns."""
        ids, weights = replay.gate(hidden @ router_weight, micro_batch, layer)
        ids = replay.dispatched(ids, micro_batch, layer)
        return hidden + (weights * torch.cos(ids + hidden[:, :4])).sum(-1, keepdim=True)

    def run_model(self, replay, weight, x, micro_batch, wrap):
        hidden = x
        for layer in range(3):
            hidden = wrap(replay, weight, hidden, micro_batch, layer)
        return hidden.square().sum()

    def test_checkpoints_and_compiled_graphs_give_the_same(self):
        for device in DEVICES:
            wraps = {
                "eager": self.layer,
                "checkpoint": lambda *args: checkpoint(self.layer, *args, use_reentrant=False),
                "reentrant": lambda *args: checkpoint(self.layer, *args, use_reentrant=True),
                "compiled": torch.compile(self.layer, fullgraph=True, backend="aot_eager"),
            }
            for mode in ("rollout", "record"):
                found = {}
                for name, wrap in wraps.items():
                    self.random = np.random.default_rng(support.SEED)
                    replay, logits, _ = self.prepare(device)
                    weight = logits[0, :8].clone().requires_grad_()
                    x = logits[1, :, :8].clone().requires_grad_()
                    with replay.step(mode, 3):
                        for m in range(3):
                            replay.plan(m, self.segments)
                        losses = [self.run_model(replay, weight, x * (m + 1), m, wrap) for m in range(3)]
                        for loss in reversed(losses):
                            loss.backward()
                    found[name] = torch.stack([loss.detach() for loss in losses]), weight.grad, x.grad
                for name, results in found.items():
                    for one, other in zip(results, found["eager"]):
                        self.assertTrue(close(one, other), f"{device} {mode} {name}")

    def test_the_ops_are_what_they_say(self):
        replay, logits, _ = self.prepare("cpu")
        replay.begin("rollout", 1)
        replay.plan(0, self.segments)
        z = logits[0].clone().requires_grad_()
        torch.library.opcheck(torch.ops.waybill.gate, (z, None, replay._handle, 0, 0, 0))
        ids, _ = replay.gate(z, 0, 0)
        torch.library.opcheck(torch.ops.waybill.dispatched, (ids, replay._handle, 0, 0, 0))
        replay.abort()

    def test_layers_that_differ_in_k(self):
        Ks = (4, 1, 2)
        model = waybill.RouteModel(
            "m", support.FINGERPRINT, "softmax_norm", 4, (1, 2, 3), 16, 4, layer_top_k=Ks, weightless=3
        )
        chosen = make_routes(self.random, make_model(E=16, K=4), 6)
        record = waybill.Record(
            model, "r", self.random.integers(0, 1000, 7), 3,
            routes=np.concatenate([chosen[:, layer, :K] for layer, K in enumerate(Ks)], -1),
        )  # fmt: skip
        for device in DEVICES:
            replay = RouterReplay(model, router=Router("softmax_norm"), device=device)
            replay.add(record)
            gate = torch.compile(replay.gate, fullgraph=True, backend="aot_eager")
            with replay.step("rollout", 1):
                replay.plan(0, [waybill.Rows("r", record.tokens), waybill.Padding(2)])
                for layer, K in enumerate(Ks):
                    z = torch.randn(9, 16, generator=torch.Generator().manual_seed(layer)).to(device)
                    z.requires_grad_()
                    ids, weights = gate(z, 0, layer)
                    ids = replay.dispatched(ids, 0, layer)
                    self.assertEqual((ids.shape, weights.shape), ((9, K), (9, K)))
                    wanted = torch.from_numpy(chosen[:, layer, :K].astype(np.int64)).to(device)
                    self.assertTrue(torch.equal(ids[:6], wanted))
                    again = z.detach().clone().requires_grad_()
                    formula = weights_of(replay.router, again, ids)[:7]
                    self.assertTrue(close(weights[:7], formula) and (weights[7:] == 0).all())
                    pull = torch.arange(1, K + 1, device=device) * torch.ones(7, 1, device=device)
                    (weights[:7] * pull).sum().backward()
                    (formula * pull).sum().backward()
                    self.assertTrue(close(z.grad, again.grad))
                with self.assertRaisesRegex(waybill.InvalidArgument, r"expected 0\.\.2, found 3"):
                    replay.gate(z.detach(), 0, 3)

    def test_rows_in_parts_and_a_zigzag(self):
        for device in DEVICES:
            replay, logits, expected = self.prepare(device)
            tokens = replay["r0"].tokens
            # A rank of two of a context-parallel trainer has the first quarter and the last.
            zigzag = [waybill.Rows("r0", tokens[:2]), waybill.Rows("r0", tokens[4:6], start=4)]
            with replay.step("rollout", 2):
                replay.plan(0, self.segments)
                replay.plan(1, zigzag)
                for layer in range(3):
                    for row in range(0, 13, 5):
                        part, _ = replay.gate(logits[layer, row : row + 5], 0, layer, row)
                        replay.dispatched(part, 0, layer, row)
                        at = [i for i in self.forced if row <= i < row + 5]
                        rows = [self.forced.index(i) for i in at]
                        self.assertTrue(torch.equal(part[[i - row for i in at]], expected[rows, layer]))
                    ids, _ = replay.gate(logits[layer, :4], 1, layer)
                    replay.dispatched(ids, 1, layer)
                    self.assertTrue(torch.equal(ids, expected[[0, 1, 4, 5], layer]))

    def test_a_pipeline_stage(self):
        for device in DEVICES:
            replay, logits, expected = self.prepare(device, first_layer=1, n_layers=2)
            with replay.step("rollout", 1):
                replay.plan(0, self.segments)
                for layer in (2, 1):
                    ids, _ = replay.gate(logits[layer], 0, layer)
                    replay.dispatched(ids, 0, layer)
                    self.assertTrue(torch.equal(ids[self.forced], expected[:, layer]))
                with self.assertRaises(waybill.InvalidArgument):
                    replay.gate(logits[0], 0, 0)

    def test_another_stream(self):
        if "cuda" not in DEVICES:
            self.skipTest("no cuda")
        replay, logits, expected = self.prepare("cuda")
        with replay.step("rollout", 1):
            replay.plan(0, self.segments)
            for layer in range(3):
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    torch.cuda._sleep(10_000_000)
                    z = (logits[layer] * 2).requires_grad_()
                    ids, weights = replay.gate(z, 0, layer)
                    ids = replay.dispatched(ids, 0, layer)
                    self.assertTrue(
                        close(weights[self.forced], weights_of(replay.router, z, ids)[self.forced])
                    )
                    weights.square().sum().backward()
                torch.cuda.current_stream().wait_stream(stream)
                self.assertTrue(torch.equal(ids[self.forced], expected[:, layer]))

    def test_a_cuda_graph(self):
        if "cuda" not in DEVICES:
            self.skipTest("no cuda")
        direct, logits, expected = self.prepare("cuda")
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            replay = RouterReplay(direct.model, router=direct.router, device="cuda")
        for record in self.records:
            replay.add(record)
        z = logits.clone().requires_grad_()
        for step in range(3):
            with torch.no_grad():
                z.copy_(logits.roll(step, -1))
            torch.cuda.synchronize()
            with replay.step("rollout", 1):
                replay.plan(0, self.segments)
                replay.upload(0)
                if step == 0:
                    with torch.cuda.graph(graph, stream=stream):
                        ids, loss = self.run_layers(replay, z)
                        (gradient,) = torch.autograd.grad(loss, z)
                graph.replay()
                torch.cuda.synchronize()
                if step > 0:
                    replay.launched(0)
            with direct.step("rollout", 1):
                direct.plan(0, self.segments)
                same_ids, loss = self.run_layers(direct, z)
                (same_gradient,) = torch.autograd.grad(loss, z)
            self.assertTrue(torch.equal(ids, same_ids) and torch.equal(gradient, same_gradient))
            self.assertTrue(torch.equal(ids[:, self.forced], expected.transpose(0, 1)))
            self.assertEqual(replay.metrics(), direct.metrics())

    def run_layers(self, replay, logits):
        gates = [replay.gate(logits[layer], 0, layer) for layer in range(3)]
        ids = torch.stack([replay.dispatched(ids, 0, layer) for layer, (ids, _) in enumerate(gates)])
        return ids, sum(weights.square().sum() for _, weights in gates)

    def test_a_table_chooses_where_no_record_does(self):
        for device in DEVICES:
            replay, logits, expected = self.prepare(device)
            table = torch.from_numpy(make_routes(self.random, replay.model, 13).astype(np.int64)).to(device)
            with replay.step("rollout", 1):
                replay.plan(0, self.segments)
                for layer in range(3):
                    ids, weights = replay.gate(logits[layer], 0, layer, table=table[:, layer])
                    replay.dispatched(ids, 0, layer)
                    self.assertTrue(torch.equal(ids[self.forced], expected[:, layer]))
                    self.assertTrue(torch.equal(ids[[6, 12]], table[[6, 12], layer]))
            with replay.step("off", 1), self.assertRaises(waybill.Unsupported):
                replay.gate(logits[0], 0, 0, table=table[:, 0])

    def test_what_was_not_followed_fails_the_step(self):
        for device in DEVICES:
            replay, logits, _ = self.prepare(device)
            with self.assertRaisesRegex(waybill.Mismatch, "untold"), replay.step("rollout", 1):
                replay.plan(0, self.segments)
                replay.gate(logits[0], 0, 0)
            swap = [1, 0, 2, 3]
            with self.assertRaisesRegex(waybill.Mismatch, "MoE layer 1.*untold"), replay.step("rollout", 1):
                replay.plan(0, self.segments)
                ids = replay.gate(logits[0], 0, 0)[0][:, swap]
                self.assertTrue(torch.equal(replay.dispatched(ids, 0, 0), ids))
            # What a CUDA device finds, the end of the step tells.
            for change, expected, message in (
                (lambda x: (x + 1) % 16, waybill.Mismatch, "not routed as planned"),
                (lambda x: x + 256, waybill.InvalidArgument, "out of range"),
                (lambda x: x - 256, waybill.InvalidArgument, "out of range"),
                (lambda x: x[:, :3], waybill.InvalidArgument, "expected"),
                (lambda x: torch.cat([x, x]), waybill.InvalidArgument, "beyond its 13"),
            ):
                with self.assertRaisesRegex(expected, message), replay.step("rollout", 1):
                    replay.plan(0, self.segments)
                    replay.dispatched(change(replay.gate(logits[0], 0, 0)[0]), 0, 0)
            with self.assertRaisesRegex(waybill.InvalidArgument, "finite"), replay.step("rollout", 1):
                replay.plan(0, self.segments)
                replay.gate(logits[0] * float("nan"), 0, 0)
            replay.begin("rollout", 1)
            replay.plan(0, self.segments)
            for wrong in (logits[0, :, 1:], torch.cat([logits[0]] * 2)):
                with self.assertRaises(waybill.InvalidArgument):
                    replay.gate(wrong, 0, 0)
            for m, layer in ((1, 0), (-1, 0), (0, 3), (0, -1)):
                with self.assertRaises(waybill.InvalidArgument):
                    replay.gate(logits[0], m, layer)
            replay.abort()
            with self.assertRaisesRegex(waybill.InvalidArgument, "outside of a step"):
                replay.gate(logits[0], 0, 0)

    def test_cleared_in_a_step(self):
        replay, logits, _ = self.prepare("cpu")
        replay.begin("rollout", 1)
        replay.plan(0, self.segments)
        replay.gate(logits[0], 0, 0)
        replay.clear()
        self.assertEqual(len(replay), 0)
        with replay.step("record", 1):
            with self.assertRaises(waybill.InvalidArgument):
                replay.gate(logits[0], 0, 0)
            replay.plan(0, [waybill.Rows(None, [1, 2])])
            for layer in range(3):
                replay.dispatched(replay.gate(logits[layer, :2], 0, layer)[0], 0, layer)

    def test_what_cannot_be_is_refused(self):
        model = make_model()
        for expected, wrong in (
            (waybill.Mismatch, lambda: RouterReplay(model, router=Router("sigmoid"))),
            (waybill.InvalidArgument, lambda: RouterReplay(model, router=Router("softmax_norm", scale=-1.0))),
            (waybill.InvalidArgument, lambda: RouterReplay(model, router=Router("best"))),
            (waybill.InvalidArgument, lambda: RouterReplay(model, bias=[torch.zeros(8)])),
            (waybill.InvalidArgument, lambda: RouterReplay(model, bias=[torch.zeros(7)] * 3)),
            (waybill.Unsupported, lambda: RouterReplay(model, device="meta")),
        ):
            with self.assertRaises(expected):
                wrong()
        replay = RouterReplay(model)
        for what, wrong in (
            ("router: expected a .*Router, found str", lambda: RouterReplay(model, router="softmax")),
            ("bias of MoE layer 0: .*Tensor, found list", lambda: RouterReplay(model, bias=[[0.0] * 7] * 3)),
            ("logits: expected a torch.Tensor, found list", lambda: replay.gate([[0.0] * 7], 0, 0)),
            ("ids dispatched: .*Tensor, found list", lambda: replay.dispatched([[0, 1]], 0, 0)),
        ):
            with self.subTest(what), self.assertRaisesRegex(TypeError, what):
                wrong()

    def test_a_replay_that_is_gone_is_missed(self):
        replay, logits, _ = self.prepare("cpu")
        number = replay._handle
        del replay
        gc.collect()
        with self.assertRaisesRegex(waybill.InvalidArgument, "gone"):
            torch.ops.waybill.gate(logits[0], None, number, 0, 0, 0)


if __name__ == "__main__":
    support.main()
