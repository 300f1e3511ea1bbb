"""What the batches of trainers carry, as records and back: verl's DataProto, slime's samples.

    records = waybill.batches.from_verl(batch, "MODEL")      # a DataProto, a TensorDict or a dict of arrays
    batch.batch["routed_experts"] = torch.from_numpy(waybill.batches.to_verl(records, batch))

    records = waybill.batches.from_slime(samples, "MODEL")   # Samples, or dicts of their fields
    for sample, fields in zip(samples, waybill.batches.to_slime(records)):
        sample.rollout_routed_experts = fields["rollout_routed_experts"]

What is read, checked and refused is what waybill.import_ reads of these systems' files, and what is written
is what waybill.export writes: docs/import.md says how each of them means padding, missing rows and layers.
"""

from __future__ import annotations

import io
import os
import tempfile
from typing import Any, Callable, Iterable, Sequence

import numpy as np

from ._dump import create, open as open_dump
from ._errors import Error, InvalidArgument, Mismatch, Unsupported
from ._foreign import export, import_
from ._record import Record, check_record

__all__ = ["from_slime", "from_verl", "to_slime", "to_verl"]


def _array(value: Any, name: str) -> np.ndarray | None:
    """A tensor or an array as numpy has it; None for objects that no importer asks for."""
    if getattr(value, "is_nested", False):
        raise Unsupported(f"{name}: a nested tensor: make a padded one of it, with zeros")
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    try:
        made = np.asarray(value)
    except ValueError:  # lists of different lengths
        return None
    if made.dtype == object and made.size and all(isinstance(one, str) for one in made.ravel()):
        made = made.astype(str)
    return None if made.dtype == object else made


def _fields(batch: Any) -> dict[str, np.ndarray]:
    """The arrays of a DataProto, its tensors and the others, of a TensorDict or of a dict."""
    parts = (batch.batch, batch.non_tensor_batch) if hasattr(batch, "non_tensor_batch") else (batch,)
    for part in parts:
        if part is not None and not hasattr(part, "items"):
            raise TypeError(
                f"batch: expected a DataProto, a TensorDict or a dict of arrays, found {type(part).__name__}"
            )
    found = {name: _array(value, name) for part in parts if part is not None for name, value in part.items()}
    return {name: value for name, value in found.items() if value is not None}


def _need(fields: dict[str, np.ndarray], shapes: dict[str, int]) -> None:
    """Refuses a batch without these arrays, of so many dimensions, all with as many sequences."""
    for name, n_dims in shapes.items():
        if name not in fields:
            raise InvalidArgument(
                f"batch: expected {name}, an array, found {', '.join(sorted(fields)) or 'nothing'}"
            )
        if fields[name].ndim != n_dims:
            raise InvalidArgument(
                f"batch: {name}: expected {n_dims} dimensions, found shape {list(fields[name].shape)}"
            )
    sequences = {name: len(fields[name]) for name in shapes}
    if len(set(sequences.values())) > 1:
        raise InvalidArgument(f"batch: expected as many sequences in each array, found {sequences}")


def _imported(arrays: dict[str, Any], system: str, model: Any, refused: Any) -> list[Record]:
    made = io.BytesIO()
    np.savez(made, **arrays)
    return list(import_(made.getvalue(), system, model, refused=refused))


def _exported(records: Sequence[Record], system: str) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        dump, arrays = os.path.join(folder, "records.wbr"), os.path.join(folder, "batch.npz")
        with create(dump, check_record(records[0]).model) as writer:
            for number, record in enumerate(records):
                try:
                    writer.append(check_record(record))
                except Error as error:
                    raise type(error)(f"records[{number}]: {error}") from None
        with open_dump(dump) as opened:
            export(opened, system, arrays)
        with np.load(arrays) as members:
            return dict(members)


def from_verl(batch: Any, model: Any, *, refused: Callable[[Any], Any] | None = None) -> list[Record]:
    """Records of a batch of verl: input_ids, attention_mask, prompts, responses [B, ..] and routed_experts
    [B, S, layers, K], with rollout_log_probs, uid and the others where they are there.

    Requests of one uid are a group. model, refused: as of waybill.import_.
    """
    fields = _fields(batch)
    _need(fields, {"input_ids": 2, "attention_mask": 2, "routed_experts": 4})
    return _imported(fields, "verl", model, refused) if len(fields["input_ids"]) else []


def to_verl(records: Iterable[Record], batch: Any) -> np.ndarray:
    """routed_experts [B, S, layers, K] of all hidden layers, i2 where that holds the experts and else i4, for
    a batch of verl whose sequences are these records, in this order: zeros where there is no row. Mismatch,
    naming the record, for other tokens."""
    records, fields = list(records), _fields(batch)
    _need(fields, {"input_ids": 2, "attention_mask": 2, "prompts": 2})
    if not records:
        raise InvalidArgument("records: expected one or more, found none")
    made = _exported(records, "verl")
    ids, mask, prompts = (fields[name] for name in ("input_ids", "attention_mask", "prompts"))
    if mask.shape != ids.shape:
        raise Mismatch(f"batch: attention_mask: expected shape {list(ids.shape)}, found {list(mask.shape)}")
    if len(ids) != len(records):
        raise Mismatch(f"batch: expected {len(records)} sequences, one a record, found {len(ids)}")
    left = prompts.shape[1] - made["prompts"].shape[1]
    right = ids.shape[1] - prompts.shape[1] - made["responses"].shape[1]
    if min(left, right) < 0:
        raise Mismatch(
            f"batch: expected room for {made['prompts'].shape[1]} tokens of a prompt and "
            f"{made['responses'].shape[1]} new ones, found {prompts.shape[1]} and "
            f"{ids.shape[1] - prompts.shape[1]}"
        )
    wide = {name: np.pad(made[name], ((0, 0), (left, right))) for name in ("input_ids", "attention_mask")}
    for record, its, there, expected, found in zip(
        records, ids, mask != 0, wide["input_ids"], wide["attention_mask"] != 0
    ):
        if not np.array_equal(there, found) or not np.array_equal(its[there], expected[found]):
            raise Mismatch(
                f"record {record.rid}: expected its tokens at its place in the batch, found others"
            )
    return np.pad(made["routed_experts"], ((0, 0), (left, right), (0, 0), (0, 0)))


_SLIME = (
    "tokens",
    "response_length",
    "rollout_routed_experts",
    "rollout_indexer_topk",
    "rollout_log_probs",
    "weight_versions",
)
_STATUS = {"stop": "completed", "length": "truncated", "abort": "aborted"}


def from_slime(
    samples: Iterable[Any], model: Any, *, refused: Callable[[Any], Any] | None = None
) -> list[Record]:
    """Records of slime's samples, or of dicts of their fields: tokens, response_length,
    rollout_routed_experts [n - 1, layers, K], and rollout_log_probs, rollout_indexer_topk [n - 1, layers, k],
    weight_versions, group_index, index and status where they are there. A sample without routes is refused, unless it was aborted: its record has no
    rows. model, refused: as of waybill.import_."""
    arrays: dict[str, Any] = {}
    seen: dict[Any, int] = {}
    for i, sample in enumerate(samples):
        fields = sample if isinstance(sample, dict) else getattr(sample, "__dict__", None)
        if fields is None:
            raise TypeError(
                f"sample {i}: expected a Sample or a dict of its fields, found {type(sample).__name__}"
            )
        for name in _SLIME:
            value = fields.get(name)
            if value is not None and not (name == "weight_versions" and np.size(value) == 0):
                arrays[f"{name}_{i}"] = _array(value, name)
        # A sample without them is one still, and refused by its name.
        arrays.setdefault(f"tokens_{i}", np.zeros(0, np.int64))
        group, status = fields.get("group_index"), fields.get("status")
        if group is not None:
            arrays[f"group_index_{i}"] = group
            arrays[f"sample_{i}"] = seen[group] = seen.get(group, -1) + 1
        if fields.get("index") is not None:
            arrays[f"rid_{i}"] = f"sample-{fields['index']}"
        if status is not None:
            arrays[f"status_{i}"] = getattr(status, "value", status)
    return _imported(arrays, "slime", model, refused) if arrays else []


def to_slime(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Of each record the fields of a sample of slime: tokens, response_length, rollout_routed_experts i4 [n -
    1, hidden layers, K] with -1 where a row is missing, rollout_log_probs and rollout_indexer_topk i4 [n - 1,
    layers that use an indexer, k] where there are some, group_index, and status, a text."""
    records = list(records)
    members = _exported(records, "slime") if records else {}
    made = []
    while f"tokens_{len(made)}" in members:
        fields = {name: members[key] for name in _SLIME if (key := f"{name}_{len(made)}") in members}
        finish = members[f"finish_reason_{len(made)}"].item().decode()
        fields.update(
            tokens=fields["tokens"].tolist(),
            response_length=int(fields["response_length"]),
            group_index=int(members[f"group_index_{len(made)}"]),
            status=_STATUS.get(finish, "pending"),
        )
        if "rollout_log_probs" in fields:
            fields["rollout_log_probs"] = fields["rollout_log_probs"].tolist()
        made.append(fields)
    return made
