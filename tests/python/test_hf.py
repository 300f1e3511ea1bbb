"""waybill.hf: models of transformers under forced routes give the logits, loss and gradients of the reference
data, also with recompute, with padding, and where a table chooses. Folders of make_oracle.py; --oracles in
run.sh names more."""

import contextlib
import glob
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest

import numpy as np
import support
from support import make_routes

import waybill

try:
    import torch
    import transformers
    from safetensors.torch import load_file

    import waybill.hf
    import waybill.torch
except ImportError as error:
    print(f"skip: {error}")
    raise SystemExit(77) from None

FAMILIES = [
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_5_moe",
    "olmoe",
    "mixtral",
    "gpt_oss",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v4",
    "glm4_moe",
]


def oracles():
    """Folders with reference data of a family that transformers can load."""
    found = [os.path.join(support.GOLDEN, name) for name in ("qwen3_moe", "olmoe")]
    for place in os.environ.get("WAYBILL_ORACLES", "").split():
        found += sorted(glob.glob(os.path.join(place, "*")))
    metas = [os.path.join(folder, "meta.json") for folder in found]
    known = [m for m in metas if os.path.exists(m) and json.load(open(m)).get("family") in FAMILIES]
    assert len(known) >= 2, found
    return [os.path.dirname(meta) for meta in known]


class Oracle:
    """A tiny model with what transformers computed with it, as records that force its routes."""

    def __init__(self, folder):
        self.meta = json.load(open(os.path.join(folder, "meta.json")))
        self.ref = load_file(os.path.join(folder, "ref.safetensors"))
        self.grads = load_file(os.path.join(folder, "grads.safetensors"))
        self.hf = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
        )
        self.ids = self.ref["input_ids"]
        self.B, self.S = self.ids.shape
        numbers = tuple(int(name.split("layers.")[1].split(".")[0]) for name in self.meta["routers"])
        config = getattr(self.hf.config, "text_config", None) or self.hf.config
        E, K = self.ref["router.0.logits"].shape[1], self.ref["router.0.topk_ids"].shape[1]
        layers = waybill.hf._layers(self.hf)
        router = waybill.hf._router(self.hf, layers).type
        self.model = waybill.RouteModel(
            config.model_type.removesuffix("_text"),
            support.FINGERPRINT,
            router,
            config.num_hidden_layers,
            numbers,
            E,
            K,
        )

    def records(self, kind="forced"):
        """Of one token more than is fed: the last one's row is forced here too, as the reference has it."""
        routes = torch.stack([self.ref[f"{kind}.{i}.topk_ids"] for i in range(self.model.n_moe_layers)], 1)
        routes = routes.view(self.B, self.S, self.model.n_moe_layers, self.model.top_k).numpy()
        for b in range(self.B):
            tokens = [*self.ids[b].tolist(), 0]
            yield waybill.Record(self.model, f"r{b}", tokens, 1, routes=routes[b])

    def replay(self, **options):
        replay = waybill.hf.replay_for(self.hf, self.model, **options)
        for record in self.records():
            replay.add(record)
        return replay

    def rids(self):
        return [f"r{b}" for b in range(self.B)]

    def loss(self, logits):
        logprobs = torch.log_softmax(logits[:, :-1].float(), -1)
        return -logprobs.gather(-1, self.ids[:, 1:, None]).mean()

    def assert_grads(self, test):
        """Within 1e-4 of each tensor's largest entry, under the checkpoint's names, as transformers would
        save them."""
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            for parameter in self.hf.parameters():
                parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
            self.hf.save_pretrained(folder)
            found = {}
            for path in glob.glob(os.path.join(folder, "*.safetensors")):
                found.update(load_file(path))
        buffers = ("e_score_correction_bias", "tid2eid")
        names = [name for name in self.grads if not name.endswith(buffers)]
        test.assertGreater(len(names), 10)
        for name in names:
            expected = self.grads[name]
            test.assertIn(name, found)
            scale = max(float(expected.abs().max()), 1e-6)
            test.assertTrue(float((found[name] - expected).abs().max()) <= 1e-4 * scale, name)


class Oracles(unittest.TestCase):
    def test_forced_logits_loss_and_gradients(self):
        for folder in oracles():
            with self.subTest(folder):
                oracle = Oracle(folder)
                replay = oracle.replay()
                attached = waybill.hf.attach(oracle.hf, replay)
                with replay.step("rollout", 1):
                    attached.plan(0, oracle.rids(), oracle.ids)
                    with attached.micro_batch(0):
                        logits = oracle.hf(oracle.ids, use_cache=False).logits
                    loss = oracle.loss(logits)
                    loss.backward()
                self.assertTrue(float((logits - oracle.ref["forced.logits"]).abs().max()) <= 1e-4)
                self.assertTrue(abs(float(loss) - float(oracle.ref["forced.loss"])) <= 1e-5)
                oracle.assert_grads(self)
                # 30 % of the rows were forced elsewhere than they would have gone.
                metrics = replay.metrics()
                self.assertEqual(metrics.forced_rows, oracle.B * oracle.S)
                self.assertGreater(metrics.token_differ, 0.1)

    def test_recompute_of_several_micro_batches(self):
        for folder in oracles():
            with self.subTest(folder):
                oracle = Oracle(folder)
                oracle.hf.train()
                oracle.hf.gradient_checkpointing_enable(
                    gradient_checkpointing_kwargs={"use_reentrant": False}
                )
                replay = oracle.replay()
                attached = waybill.hf.attach(oracle.hf, replay)
                with replay.step("rollout", oracle.B):
                    losses = []
                    for b in range(oracle.B):
                        ids = oracle.ids[b : b + 1]
                        attached.plan(b, [f"r{b}"], ids)
                        with attached.micro_batch(b):
                            logits = oracle.hf(ids, use_cache=False).logits
                        self.assertTrue(float((logits - oracle.ref["forced.logits"][b]).abs().max()) <= 1e-4)
                        logprobs = torch.log_softmax(logits[:, :-1].float(), -1)
                        losses.append(-logprobs.gather(-1, ids[:, 1:, None]).mean() / oracle.B)
                    # Each is recomputed after the forwards of all others.
                    for loss in losses:
                        loss.backward()
                oracle.assert_grads(self)

    def test_attaching_again_with_recompute(self):
        oracle = Oracle(oracles()[0])
        oracle.hf.train()
        oracle.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        modules = [m for m in oracle.hf.modules() if hasattr(m, "_gradient_checkpointing_func")]
        before = [m._gradient_checkpointing_func for m in modules]
        self.assertGreater(len(modules), 0)
        for late in (False, True, False):
            attached = waybill.hf.attach(oracle.hf, oracle.replay())
            for _ in range(3):
                oracle.hf.zero_grad()
                with attached.replay.step("rollout", 1):
                    attached.plan(0, oracle.rids(), oracle.ids)
                    with attached.micro_batch(0):
                        loss = oracle.loss(oracle.hf(oracle.ids, use_cache=False).logits)
                    loss.backward()
            with attached.native():
                loss = oracle.loss(oracle.hf(oracle.ids, use_cache=False).logits)
            # What is recomputed after the model was given back does not take it again.
            if not late:
                loss.backward()
            attached.detach()
            if late:
                loss.backward()
            self.assertEqual([m._gradient_checkpointing_func for m in modules], before)
        oracle.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        attached = waybill.hf.attach(oracle.hf, oracle.replay())
        with attached.native():
            oracle.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            set_since = [m._gradient_checkpointing_func for m in modules]
        attached.detach()
        self.assertEqual([m._gradient_checkpointing_func for m in modules], set_since)

    def test_native_routes_are_the_models_own(self):
        for folder in oracles():
            with self.subTest(folder):
                oracle = Oracle(folder)
                replay = oracle.replay()
                attached = waybill.hf.attach(oracle.hf, replay)
                with torch.no_grad():
                    for mode in ("off", "record"):
                        with replay.step(mode, 1):
                            attached.plan(0, oracle.rids(), oracle.ids)
                            for _ in range(2):
                                with attached.micro_batch(0):
                                    logits = oracle.hf(oracle.ids, use_cache=False).logits
                                self.assertTrue(float((logits - oracle.ref["logits"]).abs().max()) <= 1e-4)
                        for layer in range(oracle.model.n_moe_layers if mode == "record" else 0):
                            kept = np.sort(replay.rows(0, layer).ids, -1)
                            expected = oracle.ref[f"router.{layer}.topk_ids"].numpy()
                            np.testing.assert_array_equal(kept, np.sort(expected, -1))
                    with attached.native():
                        logits = oracle.hf(oracle.ids, use_cache=False).logits
                    self.assertTrue(float((logits - oracle.ref["logits"]).abs().max()) <= 1e-4)
                    attached.detach()
                    logits = oracle.hf(oracle.ids, use_cache=False).logits
                    self.assertTrue(float((logits - oracle.ref["logits"]).abs().max()) <= 1e-4)


class Example(unittest.TestCase):
    def test_replay_takes_the_rollouts_log_probabilities_back(self):
        folder = oracles()[0]
        oracle = Oracle(folder)
        with tempfile.TemporaryDirectory() as work:
            path = os.path.join(work, "part-0.wbr")
            with waybill.create(path, oracle.model) as writer:
                for b, record in enumerate(oracle.records()):
                    tokens, routes = record.tokens[:-1], record.routes[:-1]
                    logprobs = oracle.ref["forced.logprobs"][b].numpy()
                    writer.append(
                        waybill.Record(oracle.model, f"r{b}", tokens, 1, routes=routes, logprobs=logprobs)
                    )
            script = os.path.join(support.TESTS, "..", "examples", "03_transformers.py")
            command = [sys.executable, script, folder, work, "--batch", "1"]
            done = subprocess.run(command, capture_output=True, text=True)
            # A folder without a dump is named in a line.
            for record in os.listdir(work):
                os.remove(os.path.join(work, record))
            none = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(none.returncode, 1)
        self.assertRegex(none.stderr, r"(?m)^03_transformers.py: .*: no \*.wbr file in this directory$")
        self.assertNotIn("Traceback", none.stderr)
        self.assertEqual(done.returncode, 0, done.stderr)
        off, rollout = (float(kl) for kl in re.findall(r"model\) ([-0-9.e]+)", done.stdout))
        self.assertGreater(off, 1e-5)
        self.assertTrue(rollout <= 1e-9, done.stdout)


class Vllm(unittest.TestCase):
    """What a server of vLLM answered (tests/golden/vllm), for a model whose weights are others here."""

    def setUp(self):
        torch.manual_seed(1)
        config = transformers.Qwen3MoeConfig(
            vocab_size=128,
            hidden_size=64,
            intermediate_size=64,
            moe_intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            num_experts=16,
            num_experts_per_tok=4,
            norm_topk_prob=True,
            initializer_range=0.2,
        )
        self.model = transformers.Qwen3MoeForCausalLM(config)

    def answers(self, name, **options):
        with tempfile.TemporaryDirectory() as folder:
            self.model.config.save_pretrained(folder)
            return list(
                waybill.import_(os.path.join(support.GOLDEN, "vllm", name), "vllm", folder, **options)
            )

    def test_true_answers_are_replayed(self):
        records = self.answers("true.jsonl")
        self.assertEqual(len(records), 3)
        replay = waybill.hf.replay_for(self.model, records[0])
        attached = waybill.hf.attach(self.model, replay)
        went = []
        for layer in waybill.hf._layers(self.model):
            layer.experts.register_forward_pre_hook(lambda module, args: went.append(args[1].numpy()))
        for record in records:
            replay.add(record)
            tokens = torch.from_numpy(record.tokens[None, :-1].astype(np.int64))
            went.clear()
            with replay.step("rollout", 1):
                attached.plan(0, [record.rid], tokens)
                with attached.micro_batch(0):
                    logits = self.model(tokens, use_cache=False).logits
                targets = torch.from_numpy(record.tokens[1:].astype(np.int64))
                loss = torch.nn.functional.cross_entropy(logits[0], targets)
                loss.backward()
            np.testing.assert_array_equal(np.stack(went, 1), record.routes)
            self.assertTrue(bool(torch.isfinite(loss)))
            for layer in waybill.hf._layers(self.model):
                self.assertTrue(0 < float(layer.router.weight.grad.abs().max()) < np.inf)
            # Other weights choose the recorded experts in all layers once in 6e9 rows.
            self.assertEqual(replay.metrics().token_differ, 1)

    def test_zeros_are_refused(self):
        refused = []
        self.assertEqual(self.answers("zeros.jsonl", refused=refused.append), [])
        self.assertEqual(len(refused), 3)
        for error in refused:
            self.assertRegex(str(error), "request cmpl-.*every id of all [0-9]+ rows is zero")


class Attaching(unittest.TestCase):
    def setUp(self):
        self.oracle = Oracle(oracles()[0])
        self.replay = self.oracle.replay(missing="native")

    def test_padded_batches(self):
        oracle, replay = self.oracle, self.replay
        attached = waybill.hf.attach(oracle.hf, replay)
        S = oracle.S
        padded = torch.zeros((2, S + 3), dtype=torch.int64)
        mask = torch.zeros_like(padded)
        padded[0, :S], padded[1, 3:] = oracle.ids[0], oracle.ids[1]
        mask[0, :S], mask[1, 3:] = 1, 1
        with torch.no_grad(), replay.step("rollout", 1):
            attached.plan(0, ["r0", "r1"], padded, mask)
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            with attached.micro_batch(0):
                logits = oracle.hf(
                    padded, attention_mask=mask, position_ids=positions, use_cache=False
                ).logits
            expected = oracle.ref["forced.logits"]
            self.assertTrue(float((logits[0, :S] - expected[0]).abs().max()) <= 1e-4)
            self.assertTrue(float((logits[1, 3:] - expected[1]).abs().max()) <= 1e-4)
        self.assertEqual(replay.metrics().padding_rows, 6)
        with replay.step("off", 1), self.assertRaisesRegex(waybill.InvalidArgument, "hole"):
            mask[0, 2] = 0
            attached.plan(0, ["r0", "r1"], padded, mask)

    def test_what_is_not_the_model_is_refused(self):
        oracle = self.oracle
        m = oracle.model
        names = ("name", "fingerprint", "router", "num_hidden_layers", "moe_layers", "num_experts", "top_k")
        known = {name: getattr(m, name) for name in names}
        for changed, what in (
            ({"name": "olmoe"}, "model_type"),
            ({"moe_layers": m.moe_layers[1:]}, "MoE layers"),
            ({"num_experts": m.num_experts * 2}, "experts"),
            ({"top_k": m.top_k - 1}, "experts of a token"),
        ):
            other = waybill.RouteModel(**{**known, **changed})
            with self.subTest(what), self.assertRaisesRegex(waybill.Mismatch, what):
                waybill.hf.attach(oracle.hf, waybill.hf.replay_for(oracle.hf, other))
        router = waybill.torch.Router("softmax_norm", scale=2.0)
        with self.assertRaisesRegex(waybill.Mismatch, "router"):
            waybill.hf.attach(oracle.hf, waybill.torch.RouterReplay(m, router=router))
        with self.assertRaises(waybill.Unsupported):
            waybill.hf.attach(torch.nn.Linear(2, 2), self.replay)
        tokens, attached = [[1, 2]], waybill.hf.attach(oracle.hf, self.replay)
        self.addCleanup(attached.detach)
        for what, wrong in (
            ("model: expected a torch.nn.Module, found str", lambda: waybill.hf.attach("x", self.replay)),
            ("model: expected a torch.nn.Module, found str", lambda: waybill.hf.replay_for("x", m)),
            ("replay: .*RouterReplay, found Replay", lambda: waybill.hf.attach(oracle.hf, waybill.Replay(m))),
            ("input_ids: expected a torch.Tensor, found list", lambda: attached.plan(0, ["a"], tokens)),
            ("mask: .*found list", lambda: attached.plan(0, ["a"], torch.tensor(tokens), [[1, 1]])),
        ):
            with self.subTest(what), self.assertRaisesRegex(TypeError, what):
                wrong()

    def test_recompute_of_a_native_forward_is_native(self):
        grads = []
        for attaching in (True, False):
            oracle = Oracle(oracles()[0])
            oracle.hf.train()
            oracle.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            within = contextlib.nullcontext()
            if attaching:
                within = waybill.hf.attach(oracle.hf, oracle.replay()).native()
            with within:
                loss = oracle.loss(oracle.hf(oracle.ids, use_cache=False).logits)
            loss.backward()
            grads.append([parameter.grad for parameter in oracle.hf.parameters()])
        for one, other in zip(*grads):
            self.assertTrue(torch.equal(one, other))

    def test_a_forward_that_nobody_planned_is_refused(self):
        attached = waybill.hf.attach(self.oracle.hf, self.replay)
        with self.assertRaisesRegex(waybill.InvalidArgument, "already"):
            waybill.hf.attach(self.oracle.hf, self.replay)
        with self.assertRaisesRegex(waybill.InvalidArgument, "micro_batch"):
            self.oracle.hf(self.oracle.ids)
        with self.replay.step("off", 1):
            pass
        with self.assertRaises(waybill.InvalidArgument), attached.micro_batch(0):
            self.oracle.hf(self.oracle.ids)

    def test_experts_that_get_other_ids_fail_the_step(self):
        attached = waybill.hf.attach(self.oracle.hf, self.replay)
        experts = waybill.hf._layers(self.oracle.hf)[1].experts

        def elsewhere(module, args):
            hidden, ids, weights = args
            ids = ids.clone()
            ids[4] = (ids[4] + 1) % self.oracle.model.num_experts
            return hidden, ids, weights

        experts.register_forward_pre_hook(elsewhere, prepend=True)
        with self.assertRaisesRegex(waybill.Mismatch, "row 4"), self.replay.step("rollout", 1):
            attached.plan(0, self.oracle.rids(), self.oracle.ids)
            with attached.micro_batch(0):
                self.oracle.hf(self.oracle.ids)

    def test_experts_that_nobody_asked_fail_the_step(self):
        attached = waybill.hf.attach(self.oracle.hf, self.replay)
        with self.assertRaisesRegex(waybill.Mismatch, "untold"), self.replay.step("rollout", 1):
            attached.plan(0, self.oracle.rids(), self.oracle.ids)

    def test_an_engines_record_whose_last_token_was_never_fed(self):
        oracle, replay = self.oracle, self.replay
        random, n = support.random_for(self), oracle.S
        routes = make_routes(random, oracle.model, n - 1)
        replay.add(waybill.Record(oracle.model, "engine", oracle.ids[0], 3, routes=routes))
        attached = waybill.hf.attach(oracle.hf, replay)
        with replay.step("rollout", 1), attached.micro_batch(0):
            attached.plan(0, ["engine"], oracle.ids[:1])
            oracle.hf(oracle.ids[:1]).logits.sum().backward()
        for layer in range(oracle.model.n_moe_layers):
            np.testing.assert_array_equal(replay.rows(0, layer).ids[:-1], routes[:, layer])
        self.assertEqual(replay.metrics().forced_rows, n - 1)
        self.assertEqual(replay.metrics().fallback_rows, 0)


if __name__ == "__main__":
    support.main()
