"""Waybill: routing replay for reinforcement learning on Mixture-of-Experts models.

    import waybill
    for record in waybill.open("dump"):
        print(record.rid, len(record.tokens), record.routes.shape)

Dumps: open, create, verify, Record, RouteModel. Answers and batches of other systems: import_, export.
Training under replay: Replay, pack; waybill.torch for PyTorch, waybill.hf for transformers, waybill.megatron
for Megatron-Core, waybill.trl for TRL and waybill.batches for what verl and slime carry, which are imported
by name. Prompts as text: waybill.tokenize. Placing experts: waybill.eplb. Whatever fails raises an Error of its own class, with the library's
message: what, where, what was expected and what was found; an argument of another type than described is a
TypeError. Objects other than dumps and records are used by one thread at a time.

Letters of shapes: T tokens or rows, L MoE layers, K choices of a token, E experts, R ranks, S slots, M
micro-batches.
"""

from . import _abi, eplb
from ._dump import Dump, DumpInfo, DumpWriter, create, open, verify
from ._errors import (
    Capacity,
    Corrupt,
    Device,
    Error,
    InputOutput,
    InvalidArgument,
    Mismatch,
    MissingRoutes,
    NotFound,
    OutOfMemory,
    Peer,
    Unsupported,
)
from ._foreign import Import, export, import_
from ._model import Indexer, RouteModel
from ._pack import Pack, pack
from ._record import IndexerRows, Mask, Record, Run, Sampling
from ._replay import ALL_LAYERS, Padding, Replay, ReplayMetrics, Rows, Slice
from ._replay_indexer import IndexerSlice

__version__: str = _abi.functions["wb_version"]().decode()

__all__ = [
    "ALL_LAYERS",
    "Capacity",
    "Corrupt",
    "Device",
    "Dump",
    "DumpInfo",
    "DumpWriter",
    "Error",
    "Import",
    "Indexer",
    "IndexerRows",
    "IndexerSlice",
    "InputOutput",
    "InvalidArgument",
    "Mask",
    "Mismatch",
    "MissingRoutes",
    "NotFound",
    "OutOfMemory",
    "Pack",
    "Padding",
    "Peer",
    "Record",
    "Replay",
    "ReplayMetrics",
    "RouteModel",
    "Rows",
    "Run",
    "Sampling",
    "Slice",
    "Unsupported",
    "create",
    "eplb",
    "export",
    "import_",
    "open",
    "pack",
    "verify",
]
