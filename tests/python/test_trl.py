"""waybill.trl: in TRL's GRPOTrainer every forward of the policy goes by the routes that the rollout returned
for just these tokens, however TRL shuffles and splits its batches; what a rollout does not return is refused.
On the model and the rollout of examples/05_trl_grpo.py."""

import collections
import importlib.util
import os
import unittest
import unittest.mock

import support

import waybill

try:
    path = os.path.join(os.path.dirname(support.TESTS), "examples", "05_trl_grpo.py")
    spec = importlib.util.spec_from_file_location("trl_example", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    import torch

    import waybill.trl
except ImportError as error:
    print(f"skip: {error}")
    raise SystemExit(77) from None

SPLIT = dict(per_device_train_batch_size=16, steps_per_generation=2, num_iterations=2)


class Loop(unittest.TestCase):
    def setUp(self):
        support.random_for(self)

    def watch(self):
        """What rollouts said of sequences, and where forwards of the policy sent them: by tokens."""
        said, went = collections.defaultdict(list), collections.defaultdict(list)
        generate, attach = example.Engine.generate, waybill.hf.attach
        seen = {}

        def told(engine, model, prompts):
            tokens, logprobs, routes = generate(engine, model, prompts)
            for row, route in zip(tokens.tolist(), routes):
                said[tuple(row)].append(route.tolist())
            return tokens, logprobs, routes

        def attach_and_look(model, replay):
            attached = attach(model, replay)
            if model.dtype == torch.float32:
                model.register_forward_pre_hook(lambda *a: seen.update(a[2]), with_kwargs=True)
                for layer in model.model.layers:
                    layer.mlp.experts.register_forward_pre_hook(look)
            return attached

        def look(module, args):
            ids = seen["input_ids"]
            for tokens, rows in zip(ids.tolist(), args[1].view(*ids.shape, -1)):
                went[tuple(tokens)].append(rows[:-1].tolist())

        for name, value in (("Engine.generate", told), ("waybill.hf.attach", attach_and_look)):
            patched = unittest.mock.patch(f"{__name__}.example.{name}", value)
            patched.start()
            self.addCleanup(patched.stop)
        return said, went

    def followed(self, said, went):
        """How many (sequence, layer) went as said; none went elsewhere."""
        self.assertTrue(went)
        for tokens, passes in went.items():
            layers = [[row[layer] for row in routes] for routes in said[tokens] for layer in range(3)]
            for rows in passes:
                self.assertIn(rows, layers)
        return sum(map(len, went.values()))

    def test_every_forward_follows_the_rollout(self):
        evaluated = {**SPLIT, "eval_strategy": "steps", "eval_steps": 1}
        for settings in ({}, evaluated, {**SPLIT, "gradient_checkpointing": False}, {**SPLIT, "beta": 0.1}):
            with self.subTest(**settings):
                said, went = self.watch()
                trainer = example.train(3, "rollout", support.SEED, **settings)
                batch = settings.get("per_device_train_batch_size", 32)
                self.assertGreaterEqual(self.followed(said, went), 3 * batch * 3)
                lines = [line for line in trainer.state.log_history if "replay/forced_rows" in line]
                self.assertEqual([line["replay/forced_rows"] for line in lines], [6 * batch] * 3)
                unittest.mock.patch.stopall()

    def test_off_it_goes_its_own_way(self):
        said, went = self.watch()
        trainer = example.train(3, "off", support.SEED)
        with self.assertRaises(AssertionError):
            self.followed(said, went)
        self.assertGreater(trainer.state.log_history[0]["replay/token_differ"], 0)

    def a_row_less(self, out):
        out["routed_experts"][3] = out["routed_experts"][3][1:]

    def test_what_a_rollout_does_not_return(self):
        rollout_with = example.rollout_with
        for change, expected, words in (
            (lambda out: out.pop("routed_experts"), waybill.InvalidArgument, "found none"),
            (self.a_row_less, waybill.MissingRoutes, "sequence-3"),
            (lambda out: out["routed_experts"].pop(), waybill.InvalidArgument, "of 32 sequences, found 31"),
            (lambda out: out["routed_experts"].append(0), waybill.InvalidArgument, "of 32.*found 33"),
            (lambda out: out["routed_experts"][2].fill(1), waybill.Error, "sequence-2"),
        ):

            def changed(*args, change=change):
                def rollout(*given):
                    out = rollout_with(*args)(*given)
                    change(out)
                    return out

                return rollout

            with unittest.mock.patch.object(example, "rollout_with", changed):
                with self.subTest(words), self.assertRaisesRegex(expected, words):
                    example.train(1, "rollout", support.SEED)
        with unittest.mock.patch.object(example, "rollout_with", lambda *args: None):
            with self.assertRaisesRegex(waybill.Unsupported, "rollout_func"):
                example.train(1, "rollout", support.SEED)


if __name__ == "__main__":
    support.main()
