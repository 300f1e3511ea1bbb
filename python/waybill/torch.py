"""Routing replay in PyTorch: the gate that any MoE module calls in place of its own top-k.

    replay = waybill.torch.RouterReplay(dump.model, device="cuda")
    for record in dump:
        replay.add(record)
    with replay.step("rollout", n_micro_batches):           # Mismatch unless every row was followed
        replay.plan(0, [waybill.Rows(rid, tokens), ...])    # what micro-batch 0 feeds, row by row
        ...
            # in a MoE layer's forward, and in each recompute of it, in any order:
            ids, weights = replay.gate(logits, micro_batch=0, layer=3)
            ids = replay.dispatched(ids, micro_batch=0, layer=3)   # as close to the experts as one gets
        ...
    replay.metrics(), replay.layer_metrics()

`gate` is a custom op of torch with a backward of its own: autograd, torch.compile and checkpointing take it
as any other op. A rank plans the positions that it feeds: under sequence and context parallelism its own
part, a zigzag as two Rows of one request; a pipeline stage is first_layer and n_layers; packed sequences are
Rows one after the other. The load that an auxiliary loss or a bias update should see is that of the ids
returned here.
"""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass
from typing import Any, Iterator, Sequence

import numpy as np
import torch

from . import _abi, _torch_ops
from ._errors import InvalidArgument, Unsupported, check_type
from ._model import RouteModel
from ._replay import Replay, ReplayMetrics, metrics_of

__all__ = ["Router", "RouterReplay"]


@dataclass(frozen=True)
class Router:
    """How weights are made of logits, the same in all layers.

    type: "softmax" (w = c p_C), "softmax_norm" (w = c p_C / sum p_C), "topk_softmax" (w = c softmax(z_C)),
    "sigmoid" (s = sigmoid(z), selection by s + bias, w = c s_C / (sum s_C + 1e-20)) or "sqrtsoftplus".
    normalize: divide by the sum, of the last two. scale: c. n_group, topk_group: selection is limited to that
    many groups of adjacent experts.
    """

    type: str
    normalize: bool = True
    scale: float = 1.0
    n_group: int = 1
    topk_group: int = 1


class RouterReplay(Replay):
    """A waybill.Replay whose steps are run by torch modules. See the module's text.

    router: how weights are made of logits; None: the model's router type with a scale of 1. device: where
    logits are; on CUDA the work is on the stream that is current when the replay is made, which a call from
    another stream waits for, and the other way round. bias: [L] tensors [E] f32 of that device, added for the
    selection only. Other arguments: as of waybill.Replay.
    """

    def __init__(
        self,
        model: RouteModel | Any,
        *,
        router: Router | None = None,
        device: torch.device | str = "cpu",
        bias: Sequence[torch.Tensor] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        self._hooks: int | None = None
        self._device_address: int | None = None
        self.router = router or Router(self.model.router)
        check_type("router", self.router, Router, "waybill.torch.Router")
        self.device = torch.device(device)
        self._stream: Any = None
        self._device_address = self._open_device()
        self._bias = None if bias is None else self._bias_table(bias)
        self._hooks = self._open_hooks()
        self._handle = _torch_ops.remember(self)
        self._open = False
        self._mode = "off"

    def __del__(
        self,
        close_hooks: Any = _abi.functions["wb_hooks_close"],
        close_device: Any = _abi.functions["wb_device_close"],
    ) -> None:
        if getattr(self, "_hooks", None):
            close_hooks(self._hooks)
        if getattr(self, "_device_address", None):
            close_device(self._device_address)
        super().__del__()

    def _open_device(self) -> int:
        if self.device.type == "cpu":
            return _abi.handle(_abi.functions["wb_device_open_cpu"], 0)
        if self.device.type != "cuda":
            raise Unsupported(f"device: expected cpu or cuda, found {self.device}")
        self.device = torch.device(
            "cuda", torch.cuda.current_device() if self.device.index is None else self.device.index
        )
        self._stream = torch.cuda.current_stream(self.device)
        # 1 is cudaStreamLegacy, the default stream by name: NULL would be a stream of the device's own.
        stream = self._stream.cuda_stream or 1
        with torch.cuda.device(self.device):
            return _abi.handle(_abi.functions["wb_device_open_cuda"], self.device.index, stream)

    def _bias_table(self, bias: Sequence[torch.Tensor]) -> tuple[Any, list[torch.Tensor]]:
        kept = list(bias)
        if len(kept) != self.model.n_moe_layers:
            raise InvalidArgument(
                f"bias: expected a tensor for each of {self.model.n_moe_layers} layers, found {len(kept)}"
            )
        for layer, tensor in enumerate(kept):
            self._check(tensor, torch.float32, (self.model.num_experts,), f"bias of MoE layer {layer}")
        return (ctypes.c_void_p * len(kept))(*(tensor.data_ptr() for tensor in kept)), kept

    def _open_hooks(self) -> int:
        described = _abi.struct(
            "wb_router",
            type=_abi.enum_of("WB_ROUTER_", self.router.type, "router"),
            n_experts=self.model.num_experts,
            top_k=self.model.top_k,
            n_group=self.router.n_group,
            topk_group=self.router.topk_group,
            normalize=self.router.normalize,
            scale=self.router.scale,
        )
        options = _abi.options(
            "wb_hooks_options",
            device=self._device_address,
            replay=self._address,
            router=described,
            bias=None if self._bias is None else ctypes.addressof(self._bias[0]),
        )
        return _abi.handle(_abi.functions["wb_hooks_open"], ctypes.byref(options))

    # ---- a step --------------------------------------------------------------------------------------------

    def begin(self, mode: str, n_micro_batches: int) -> None:
        number = _abi.enum_of("WB_REPLAY_", mode, "mode")
        _abi.functions["wb_hooks_step_begin"](self._hooks, number, n_micro_batches)
        self._planned_rows.clear()
        self._mode = mode
        self._open = True

    def end(self) -> ReplayMetrics:
        """Ends the step and returns its metrics. Mismatch, naming the first (micro-batch, layer, row) that
        `dispatched` was not told of; the step then stays open."""
        raw = _abi.structs["wb_replay_metrics"]()
        _abi.functions["wb_hooks_step_end"](self._hooks, ctypes.byref(raw))
        self._open = False
        return metrics_of(raw)

    def abort(self) -> None:
        _abi.functions["wb_hooks_step_abort"](self._hooks)
        self._open = False

    def rows(self, micro_batch: int, layer: int, row: int = 0, rows: int | None = None) -> Any:
        """As of waybill.Replay; in a step it waits for the device, which has what rows chose."""
        if self._open:
            _abi.functions["wb_hooks_settle"](self._hooks)
        return super().rows(micro_batch, layer, row, rows)

    # ---- a micro-batch as a CUDA graph ---------------------------------------------------------------------

    def upload(self, micro_batch: int) -> None:
        """Brings the plan of a micro-batch to the device: before its calls are captured in a torch.cuda.graph,
        and before each launch of that graph, with a plan of as many rows. Make the replay on the stream that
        captures, or on another than the default one, which cannot be captured.

            with torch.cuda.stream(stream):
                replay = RouterReplay(model, device="cuda")
                ...
                replay.upload(0)
                with torch.cuda.graph(graph, stream=stream):
                    loss = step(static_inputs)      # gates and dispatchers of micro-batch 0, backward too
                graph.replay()
                # in later steps: begin, plan, upload(0), graph.replay(), launched(0), end
        """
        _abi.functions["wb_hooks_upload"](self._hooks, micro_batch)

    def launched(self, micro_batch: int) -> None:
        """Tells that a graph of all gates and dispatchers of the micro-batch was launched in this step, where
        none of them was called."""
        _abi.functions["wb_hooks_launched"](self._hooks, micro_batch)

    # ---- in a MoE layer ------------------------------------------------------------------------------------

    def gate(
        self,
        logits: torch.Tensor,
        micro_batch: int,
        layer: int,
        row: int = 0,
        table: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where rows [row, row + T) of the micro-batch go in MoE layer `layer` (0..L-1), and with what
        weights.

        logits: [T, E], or [..., E] flattened to that, of this forward. Returns ids [T, K of the layer] i64
        and weights [T, K] f32, zero for padding rows, which flow back to logits. table: [T, K] ids, of a router that chooses
        by the token's id and not by logits. InvalidArgument for logits that are not finite, which a CUDA device
        tells at the end of the step.
        """
        check_type("logits", logits, torch.Tensor, "torch.Tensor")
        flat = logits.reshape(-1, logits.shape[-1]).float()
        weights, ids = torch.ops.waybill.gate(flat, table, self._handle, micro_batch, layer, row)
        return ids, weights

    def dispatched(self, ids: torch.Tensor, micro_batch: int, layer: int, row: int = 0) -> torch.Tensor:
        """Tells where rows from `row` on are sent, read from what the dispatcher takes, and returns ids, to
        be used in their place. Of a routing map [T, E] bool they are routing_map.nonzero()[:, 1].view(T, K):
        their order within a row does not matter. Mismatch names a row that goes elsewhere than planned; what
        a CUDA device finds, the end of the step tells."""
        check_type("ids dispatched", ids, torch.Tensor, "torch.Tensor")
        return torch.ops.waybill.dispatched(ids, self._handle, micro_batch, layer, row)

    # ---- what the ops do -----------------------------------------------------------------------------------

    def _gate_forward(self, logits: torch.Tensor, table: Any, micro_batch: int, layer: int, row: int) -> Any:
        T, K = logits.shape[0], self.model.layer_k(layer)
        logits = logits.contiguous()
        self._check(logits, torch.float32, (T, self.model.num_experts), "logits")
        if table is not None:
            self._choose(table, micro_batch, layer, row)
        narrow, described = self._ids(torch.empty((T, K), dtype=self._id_type, device=self.device))
        weights = torch.empty((T, K), dtype=torch.float32, device=self.device)
        with self._on_stream():
            _abi.functions["wb_hooks_gate_forward"](
                self._hooks, micro_batch, layer, row, T, logits.data_ptr(), described, weights.data_ptr()
            )
        return weights, narrow.to(torch.int64) & 0xFFFF

    def _gate_backward(
        self, logits: torch.Tensor, dweights: torch.Tensor, micro_batch: int, layer: int, row: int
    ) -> Any:
        T = logits.shape[0]
        logits, dweights = logits.contiguous(), dweights.float().contiguous()
        self._check(dweights, torch.float32, (T, self.model.layer_k(layer)), "the gradient of weights")
        dlogits = torch.empty_like(logits)
        with self._on_stream():
            _abi.functions["wb_hooks_gate_backward"](
                self._hooks,
                micro_batch,
                layer,
                row,
                T,
                logits.data_ptr(),
                dweights.data_ptr(),
                dlogits.data_ptr(),
            )
        return dlogits

    def _told(self, ids: torch.Tensor, micro_batch: int, layer: int, row: int) -> None:
        T = ids.shape[0]
        self._check(ids, ids.dtype, (T, self.model.layer_k(layer)), "ids dispatched")
        # A narrower type would wrap an id that is no expert's to one that is; u16 has room for such a one.
        narrow, described = self._ids(ids.clamp(-1, self.model.num_experts).to(torch.int16).contiguous())
        with self._on_stream():
            _abi.functions["wb_hooks_dispatched"](self._hooks, micro_batch, layer, row, T, described)
        del narrow

    def _choose(self, table: torch.Tensor, micro_batch: int, layer: int, row: int) -> None:
        """The rows that choose go where the table says; from here on they are forced to it."""
        if self._mode == "off":
            raise Unsupported("a table of ids in mode off, which forces nothing: use the model's own choice")
        found = super().rows(micro_batch, layer, row, len(table))
        K = self.model.layer_k(layer)
        native = _abi.array(table.cpu().numpy(), self.model.id_dtype, (len(table), K), "table")
        chosen = np.where((found.direction == 0)[:, None], native, found.ids)
        _abi.functions["wb_replay_choose"](
            self._address,
            micro_batch,
            layer,
            row,
            len(table),
            _abi.pointer(chosen),
            K,
            _abi.pointer(native),
            K,
        )

    @property
    def _id_type(self) -> torch.dtype:
        """Of the library's ids. Torch has few operations on u16: its bits travel as i16."""
        return torch.uint8 if self.model.id_dtype.itemsize == 1 else torch.int16

    def _ids(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        dtype = _abi.enums["WB_U8" if tensor.dtype == torch.uint8 else "WB_U16"]
        return tensor, _abi.struct("wb_ids", data=tensor.data_ptr(), dtype=dtype, stride=tensor.shape[1])

    def _check(self, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...], what: str) -> None:
        check_type(what, tensor, torch.Tensor, "torch.Tensor")
        found = (tensor.device, tensor.dtype, tuple(tensor.shape))
        if found != (self.device, dtype, shape):
            raise InvalidArgument(
                f"{what}: expected {dtype} {shape} on {self.device}, "
                f"found {found[1]} {found[2]} on {found[0]}"
            )

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        """The device's stream and the current one wait for each other, where they are two."""
        if self._stream is None:
            yield
            return
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream(self.device)
            if current != self._stream:
                self._stream.wait_stream(current)
            yield
            if current != self._stream:
                current.wait_stream(self._stream)
