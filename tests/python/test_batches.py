"""waybill.batches: batches that are shaped as verl's and slime's become the records that they were made of,
and records become what these trainers carry; other tokens and shapes are refused."""

import enum
import types
import unittest

import numpy as np
import support
from support import make_routes

import waybill
from waybill import batches

# Layers 1..3 of 4 have experts, as those of a config.json with a dense first layer.
MODEL = support.make_model()
HIDDEN = 4


class Status(enum.Enum):
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"


class Batches(unittest.TestCase):
    def setUp(self):
        self.random = support.random_for(self)
        self.sequences = []
        for i in range(6):
            prompt, new = int(self.random.integers(1, 7)), int(self.random.integers(1, 9))
            self.sequences.append(
                types.SimpleNamespace(
                    tokens=self.random.integers(1, 1000, prompt + new),
                    prompt=prompt,
                    rows=make_routes(self.random, MODEL, prompt + new - 1),
                    logprobs=-self.random.random(new).astype(np.float32),
                    uid=f"prompt-{i // 2}",
                )
            )

    def hidden(self, rows, dtype, fill=0):
        """All hidden layers, of which the dense one has what an engine leaves there."""
        out = np.full((len(rows), HIDDEN, MODEL.top_k), fill, dtype)
        out[:, 1:] = rows
        return out

    def verl(self, left=2, right=3):
        """A DataProto as its rollout leaves it: prompts padded on the left, new tokens on the right."""
        P = max(s.prompt for s in self.sequences) + left
        R = max(len(s.tokens) - s.prompt for s in self.sequences) + right
        B = len(self.sequences)
        made = {
            "input_ids": np.zeros((B, P + R), np.int64),
            "attention_mask": np.zeros((B, P + R), np.int64),
            "response_mask": np.zeros((B, R), np.int64),
            "rollout_log_probs": np.zeros((B, R), np.float32),
            "routed_experts": np.zeros((B, P + R, HIDDEN, MODEL.top_k), np.int16),
        }
        for b, s in enumerate(self.sequences):
            at, n = P - s.prompt, len(s.tokens)
            made["input_ids"][b, at : at + n] = s.tokens
            made["attention_mask"][b, at : at + n] = 1
            made["response_mask"][b, : n - s.prompt] = 1
            made["rollout_log_probs"][b, : n - s.prompt] = s.logprobs
            made["routed_experts"][b, at : at + n - 1] = self.hidden(s.rows, np.int16)
        made["prompts"], made["responses"] = made["input_ids"][:, :P], made["input_ids"][:, P:]
        others = {
            "uid": np.array([s.uid for s in self.sequences], dtype=object),
            "raw_prompt": np.array([[{"role": "user"}]] * B, dtype=object),
        }
        return types.SimpleNamespace(batch=made, non_tensor_batch=others)

    def same(self, records):
        self.assertEqual(len(records), len(self.sequences))
        for record, s in zip(records, self.sequences):
            np.testing.assert_array_equal(record.tokens, s.tokens)
            self.assertEqual(record.prompt_len, s.prompt)
            np.testing.assert_array_equal(record.routes, s.rows)
            np.testing.assert_array_equal(record.logprobs, s.logprobs)

    def test_verl_there_and_back(self):
        batch = self.verl()
        records = batches.from_verl(batch, MODEL)
        self.same(records)
        groups = [record.group for record in records]
        self.assertEqual([len(set(groups[i : i + 2])) for i in (0, 2, 4)], [1, 1, 1])
        self.assertEqual(len(set(groups)), 3)
        self.assertLess(max(groups), 2**53)
        self.assertEqual([record.sample for record in records], [0, 1] * 3)
        np.testing.assert_array_equal(batches.to_verl(records, batch), batch.batch["routed_experts"])
        self.assertEqual(batches.to_verl(records, self.verl(0, 0)).dtype, np.int16)
        # One row less than places, as engines return them, and a dict of the same arrays.
        plain = dict(batch.batch, routed_experts=batch.batch["routed_experts"][:, :-1])
        self.same(batches.from_verl(plain, MODEL))

    def test_verl_of_torch(self):
        try:
            import torch
        except ImportError:
            self.skipTest("no torch")
        batch = self.verl()
        batch.batch = {name: torch.from_numpy(value) for name, value in batch.batch.items()}
        self.same(batches.from_verl(batch, MODEL))
        batch.batch["routed_experts"] = torch.nested.nested_tensor([torch.zeros(2, 1), torch.zeros(3, 1)])
        with self.assertRaisesRegex(waybill.Unsupported, "routed_experts: a nested tensor"):
            batches.from_verl(batch, MODEL)

    def test_verl_of_other_tokens(self):
        batch = self.verl()
        records = batches.from_verl(batch, MODEL)
        for change in ("token", "order", "length", "width"):
            other = self.verl(*((0, 0) if change == "width" else (2, 3)))
            fields = other.batch
            if change == "token":
                fields["input_ids"][2, fields["prompts"].shape[1]] += 1
            elif change == "order":
                for name in ("input_ids", "attention_mask"):
                    fields[name][[0, 5]] = fields[name][[5, 0]]
            elif change == "length":
                fields = other.batch = {name: value[:-1] for name, value in fields.items()}
            else:
                fields["prompts"] = fields["prompts"][:, 1:]
            with self.subTest(change), self.assertRaises(waybill.Mismatch):
                batches.to_verl(records, other)
        zeros = self.verl()
        zeros.batch["routed_experts"][:] = 0
        refused = []
        self.assertEqual(batches.from_verl(zeros, MODEL, refused=refused.append), [])
        self.assertEqual(len(refused), 6)
        with self.assertRaisesRegex(waybill.InvalidArgument, "expected routed_experts"):
            del zeros.batch["routed_experts"]
            batches.from_verl(zeros, MODEL)

    def slime(self, status=Status.COMPLETED):
        return [
            types.SimpleNamespace(
                group_index=10 + i // 2,
                index=100 + i,
                prompt="text",
                tokens=s.tokens.tolist(),
                response="text",
                response_length=len(s.tokens) - s.prompt,
                reward=None,
                loss_mask=None,
                weight_versions=["3", "3"] if i else [],
                rollout_log_probs=s.logprobs.tolist(),
                rollout_routed_experts=self.hidden(s.rows, np.int32),
                remove_sample=False,
                status=status,
                metadata={},
            )
            for i, s in enumerate(self.sequences)
        ]

    def test_slime_there_and_back(self):
        samples = self.slime()
        records = batches.from_slime(samples, MODEL)
        self.same(records)
        self.assertEqual([record.group for record in records], [10, 10, 11, 11, 12, 12])
        self.assertEqual([record.sample for record in records], [0, 1] * 3)
        self.assertEqual([record.rid for record in records], [f"sample-{100 + i}" for i in range(6)])
        self.assertEqual([len(record.spans) for record in records], [0, 1, 1, 1, 1, 1])
        self.assertEqual(records[1].spans["weight_version"].tolist(), [3])
        self.same(batches.from_slime([vars(sample) for sample in samples], MODEL))
        for sample, fields in zip(samples, batches.to_slime(records)):
            self.assertEqual(fields["tokens"], sample.tokens)
            self.assertEqual(fields["response_length"], sample.response_length)
            self.assertEqual((fields["group_index"], fields["status"]), (sample.group_index, "completed"))
            # The dense layer is zero or what marks a missing row: no trainer looks at it.
            np.testing.assert_array_equal(
                fields["rollout_routed_experts"][:, 1:], sample.rollout_routed_experts[:, 1:]
            )
            self.assertEqual(fields["rollout_routed_experts"].shape, sample.rollout_routed_experts.shape)
            np.testing.assert_array_equal(np.float32(fields["rollout_log_probs"]), sample.rollout_log_probs)
        status = batches.to_slime(batches.from_slime(self.slime(Status.TRUNCATED), MODEL))[0]["status"]
        self.assertEqual(status, "truncated")

    def test_slime_without_rows(self):
        """Wherever it stands, an aborted sample has a record without rows, and another one is refused."""
        for without in ([1], [0], [5], [0, 2, 3], list(range(6))):
            samples = self.slime()
            for i in without:
                samples[i].rollout_routed_experts, samples[i].status = None, Status.ABORTED
            records = batches.from_slime(samples, MODEL)
            self.assertEqual([record.rid for record in records], [f"sample-{100 + i}" for i in range(6)])
            for i, (record, s) in enumerate(zip(records, self.sequences)):
                np.testing.assert_array_equal(record.tokens, s.tokens)
                self.assertEqual(record.valid.any(), i not in without)
            for i in without:
                del samples[i].rollout_routed_experts
                samples[i].status = Status.COMPLETED
            refused = []
            kept = batches.from_slime(samples, MODEL, refused=refused.append)
            expected = [f"sample-{100 + i}" for i in range(6) if i not in without]
            self.assertEqual([record.rid for record in kept], expected)
            self.assertEqual(len(refused), len(without))
            for i, error in zip(without, refused):
                self.assertRegex(str(error), f"sample-{100 + i}.*expected routes, found none")
        # The last one, too, is not dropped without a word.
        samples, refused = [*self.slime()[:5], {"index": 7}], []
        self.assertEqual(len(batches.from_slime(samples, MODEL, refused=refused.append)), 5)
        self.assertEqual(len(refused), 1)
        self.assertRegex(str(refused[0]), "sample-7")

    def test_slime_of_other_rows(self):
        samples = self.slime()
        samples[3].rollout_routed_experts = samples[3].rollout_routed_experts[1:]
        with self.assertRaisesRegex(waybill.Mismatch, "sample-103"):
            batches.from_slime(samples, MODEL)

    def test_nothing_there_is_nothing_back(self):
        self.assertEqual(batches.from_slime([], MODEL), [])
        self.assertEqual(batches.to_slime([]), [])
        none = {name: value[:0] for name, value in self.verl().batch.items()}
        self.assertEqual(batches.from_verl(none, MODEL), [])

    def test_what_is_no_batch_is_said(self):
        fields = self.verl().batch
        records = batches.from_verl(fields, MODEL)
        for changed, expected, words in (
            (3, TypeError, "batch: expected a DataProto.*found int"),
            ([1], TypeError, "found list"),
            (None, waybill.InvalidArgument, "batch: expected input_ids.*found nothing"),
            ({}, waybill.InvalidArgument, "batch: expected input_ids.*found nothing"),
            (
                {"input_ids": fields["input_ids"]},
                waybill.InvalidArgument,
                "expected attention_mask.*found input_ids",
            ),
            ({**fields, "input_ids": [[1, 2], [3]]}, waybill.InvalidArgument, "expected input_ids"),
            (
                {**fields, "input_ids": fields["input_ids"][0]},
                waybill.InvalidArgument,
                "input_ids: expected 2 dim",
            ),
            (
                {**fields, "attention_mask": fields["attention_mask"][1:]},
                waybill.InvalidArgument,
                "as many sequences in each.*'input_ids': 6, 'attention_mask': 5",
            ),
        ):
            for read in (
                lambda batch: batches.from_verl(batch, MODEL),
                lambda batch: batches.to_verl(records, batch),
            ):
                with self.subTest(words), self.assertRaisesRegex(expected, words):
                    read(changed)
        for changed, words in (
            (fields["routed_experts"][..., 0], "routed_experts: expected 4 dimensions"),
            (fields["routed_experts"][1:], "as many sequences"),
        ):
            with self.subTest(words), self.assertRaisesRegex(waybill.InvalidArgument, words):
                batches.from_verl({**fields, "routed_experts": changed}, MODEL)
        with self.assertRaisesRegex(waybill.Mismatch, "attention_mask: expected shape"):
            batches.to_verl(records, {**fields, "attention_mask": fields["attention_mask"][:, 1:]})
        with self.assertRaisesRegex(waybill.InvalidArgument, "records: expected one or more"):
            batches.to_verl([], fields)
        whole = batches.to_verl((record for record in records), fields)
        np.testing.assert_array_equal(whole, batches.to_verl(records, fields))
        for samples in ([1], {"tokens": [1]}):
            with self.assertRaisesRegex(TypeError, "sample 0: expected a Sample or a dict"):
                batches.from_slime(samples, MODEL)
        with self.assertRaisesRegex(waybill.NotFound, "tokens beside response_length"):
            batches.from_slime([{"tokens": [[1], [2, 3]], "response_length": 1}], MODEL)
        with self.assertRaisesRegex(
            waybill.InvalidArgument, r"^records\[6\]: rid request-0 is in the file already"
        ):
            batches.to_slime([*records, records[0]])


if __name__ == "__main__":
    support.main()
