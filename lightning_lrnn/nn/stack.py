"""The stack: gives any linear cell the interface of `torch.nn.LSTM` or `torch.nn.GRU`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NoReturn, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lightning_lrnn import backends
from lightning_lrnn.core.checks import check_numbers
from lightning_lrnn.core.masks import padding_mask
from lightning_lrnn.core.problem import sequence
from lightning_lrnn.core.ranks import Ranks, check_together, ranks_of
from lightning_lrnn.core.subclasses import inherit_arguments
from lightning_lrnn.gates import Gate
from lightning_lrnn.nn.cell import Cell, State
from lightning_lrnn.nn.checkpointing import check_checkpoint_time, in_chunks
from lightning_lrnn.nn.checks import (
    check_backend,
    check_input,
    check_layers,
    check_options,
    check_packed,
    check_step,
    check_steps,
    refuse_script,
)
from lightning_lrnn.nn.memory import Memory
from lightning_lrnn.nn.scan_context import (
    GateFunction,
    Readout,
    Recorder,
    ScanContext,
    StepContext,
    decays_of,
)

__all__ = ["Stack"]


class Stack(nn.Module):
    """Layers of one cell, in one direction or two. Subclasses name the cell.

    Args:
        input_size: features of the input.
        hidden_size: features of the hidden state.
        num_layers: layers on top of each other.
        bias: whether there are biases.
        batch_first: input and output are (B, T, ·), not (T, B, ·). Neither is copied.
        dropout: probability, on the outputs of each layer but the last, while training.
        bidirectional: a second direction, whose output is concatenated; nothing is flipped.
        proj_size: if not 0, outputs are projected to this size, where the cell allows it.
        backend: how the recurrences are computed: "auto" or a name of
            `lightning_lrnn.backends.names()`; see `lightning_lrnn.linear_recurrence`. It may be set
            at any time and is no part of the `state_dict`.
        memory: (shortest, longest) expected memory in steps, which sets the biases of the forget
            gates; see `lightning_lrnn.nn.memory.memory_bias_` for this and the default.
        checkpoint_time: time steps of a chunk, for sequences whose activations do not fit into
            memory: the backward pass computes them again, chunk by chunk, and only outputs and a
            state per chunk are kept; see `lightning_lrnn.nn.checkpointing.in_chunks`. With two
            directions also the outputs of every layer. None keeps all. It may be set at any time.
            With a `group` all ranks share a chunk, then the next one.
        device: of the parameters.
        dtype: of the parameters.
        options: further options of the cell.

    Attributes:
        group: None, or a ProcessGroup or a DeviceMesh of one dimension, whose ranks hold one
            sequence in order of time. Each takes its segment of `input` and of `reset`, with as
            many time steps as the others, and returns that of the output; `hx`, `lengths` and the
            state are of the whole sequence, equal on all ranks, see `lightning_lrnn.ops.ranks`.
            Of a sequence longer than `checkpoint_time` it is the rank's segment of each chunk, one
            after the other, see `lightning_lrnn.core.ranks.part_of`. It may be set at any time and
            is no part of the `state_dict`.
        cells: the layers, that of layer l and direction d at l * directions + d.
        options: further options of the cell, as given.
        strict_state: whether the state has the dtype of the output, as that of `torch.nn`; else it
            is float32 in 16-bit modules.

    Raises:
        ValueError: for arguments that cannot be, with their value.
    """

    cell_type: ClassVar[type[Cell]]
    strict_state: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        inherit_arguments(cls)
        if "cell_type" in vars(cls):
            _check_cell_type(cls)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        backend: str = "auto",
        memory: Memory = None,
        checkpoint_time: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        _check_cell_type(type(self))
        check_layers(hidden_size, num_layers, dropout, bidirectional, batch_first)
        if dropout and num_layers == 1:
            warnings.warn(
                f"dropout={dropout} acts between layers and does nothing with num_layers=1",
                stacklevel=2,
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.proj_size, self.memory = bidirectional, proj_size, memory
        self.directions = 2 if bidirectional else 1
        self.backend, self.checkpoint_time = backend, checkpoint_time
        self.group = None
        self.options = dict(options)
        given = {"proj_size": proj_size, "memory": memory, "device": device, "dtype": dtype}
        check_options(type(self), options, given)
        options |= given
        # Not a call with `**options`: jsonargparse would follow it into code it cannot parse.
        make: Callable[..., Cell] = partial(self.cell_type, **options)
        width = self.directions * (proj_size or hidden_size)
        self.cells = nn.ModuleList(
            make(width if layer else input_size, hidden_size, bias)
            for layer in range(num_layers)
            for _ in range(self.directions)
        )

    @property
    def backend(self) -> str:
        """The backend of the recurrences: "auto" or a name; setting an unknown name raises."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        check_backend(name)
        self._backend = name

    @property
    def group(self) -> Ranks | None:
        """The ranks that hold one sequence; None where all of it is here."""
        return self._ranks

    @group.setter
    def group(self, group: Any) -> None:
        self._ranks = ranks_of(group)

    @property
    def checkpoint_time(self) -> int | None:
        """Time steps of a chunk that the backward pass computes again; None keeps all."""
        return self._checkpoint_time

    @checkpoint_time.setter
    def checkpoint_time(self, size: int | None) -> None:
        check_checkpoint_time(size)
        self._checkpoint_time = size

    def reset_parameters(self) -> None:
        """Initialises all parameters again, those of nested cells too."""
        for cell in self.cells.modules():
            if isinstance(cell, Cell):
                cell.reset_parameters()

    @torch.no_grad()
    def explain(self, device: str | torch.device | None = None) -> dict[str, list[str]]:
        """Reasons, by name of a backend, why it cannot run this layer; [] = it can.

        Args:
            device: device to run on; that of the parameters if None.
        """
        weight = self._cells()[0].sample
        recorded: list[backends.Request] = []

        def record_request(
            path: str, gate: GateFunction, readout: Readout | None, pre: Sequence[Tensor]
        ) -> None:
            programs = [g.program for g in (gate, readout) if isinstance(g, Gate)]
            x = sequence(pre)
            recorded.append(backends.Request(x.device, x.dtype, *programs))

        context = StepContext(recorder=record_request, dropout=False)
        self._layers(weight.new_zeros(1, 1, self.input_size), None, True, context)
        target = weight.device if device is None else torch.device(device)
        requests = dict.fromkeys(request._replace(device=target) for request in recorded)
        return {
            name: list(dict.fromkeys(r for q in requests for r in backends.reasons(name, q)))
            for name in backends.names()
        }

    def param_groups(
        self, weight_decay: float = 0.01, lr: float | None = None, gate_lr: float | None = None
    ) -> list[dict[str, Any]]:
        """The parameters for an optimizer, in two groups: matrices, and biases and decays.

        Weight decay on the bias of a forget gate, or on the parameters of a decay, shortens the
        memory whatever the loss is: the second group, all vectors, has no weight decay.

        Args:
            weight_decay: of the matrices.
            lr: learning rate of the matrices; None for the optimizer's.
            gate_lr: that of biases and decays; None for the optimizer's.

        Raises:
            ValueError: for what is no number of at least 0.
        """
        check_numbers(0, weight_decay=weight_decay)
        rates = {"lr": lr, "gate_lr": gate_lr}
        check_numbers(0, **{name: rate for name, rate in rates.items() if rate is not None})
        matrices = [p for p in self.parameters() if p.ndim >= 2]
        vectors = [p for p in self.parameters() if p.ndim < 2]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        for group, rate in zip(groups, (lr, gate_lr), strict=True):
            if rate is not None:
                group["lr"] = rate
        return [group for group in groups if group["params"]]

    def flatten_parameters(self) -> None:
        """Does nothing; it exists for code that was written for `torch.nn.LSTM`."""

    def for_cells(self) -> list[dict[str, Tensor]]:
        """For each cell, arguments of its `layer` that depend on the parameters of all cells."""
        return [{} for _ in self.cells]

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Any, Tensor | tuple[Tensor, Tensor]]:
        """Runs the layers over a sequence, or over one window of it.

        Args:
            input: (T, B, input_size), with `batch_first` (B, T, input_size), or without a batch
                (T, input_size). T = 1 is a step, T = 0 changes nothing. Or a PackedSequence, with
                its rows in any order.
            hx: the initial state in the form of the one returned; zeros if None.
            lengths: integers (B,), 0 <= lengths <= T: steps from lengths[b] on are padding. Their
                output is 0 and their values, NaN too, have no effect. A row of length 0 keeps its
                state.
            reset: bool, True where a document starts; shaped as `input` without its features.

        Returns:
            The output, shaped as `input` with directions * (proj_size or hidden_size) features, and
            the final state, each part (num_layers * directions, B, ·), without B for an input
            without a batch. The state of a reverse direction is that after step 0.

        Raises:
            ValueError: for shapes that do not fit, TypeError: for dtypes or devices that do not.
            lightning_lrnn.BackendError: if the named backend cannot run.
            RuntimeError: in `torch.jit.trace`; `torch.export` is what exports a layer.
        """
        if not isinstance(input, PackedSequence):
            return self._run(input, hx, lengths, reset)
        if self.group is not None:
            raise ValueError(
                "`input` must be a padded tensor with `lengths` where ranks share a sequence: the "
                "time steps of a PackedSequence have no borders to cut it at"
            )
        check_packed(input, self.input_size, lengths, reset)
        padded, lengths = pad_packed_sequence(input, self.batch_first)
        output, state = self._run(padded, hx, lengths.to(padded.device), None)
        if input.sorted_indices is not None:
            output = output.index_select(0 if self.batch_first else 1, input.sorted_indices)
            lengths = lengths[input.sorted_indices.cpu()]
        data = pack_padded_sequence(output, lengths, self.batch_first).data
        return input._replace(data=data), state

    def step(
        self, input: Tensor, hx: State = None
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        """One step by PyTorch's own operations alone, to serve or to export to ONNX.

        Args:
            input: (B, input_size) or (input_size,).
            hx: the state, as `forward` takes and returns it; zeros if None.

        Returns:
            The output, (B, proj_size or hidden_size) or without B, and the state.

        Raises:
            ValueError: for shapes that do not fit, or if the stack is bidirectional: what comes
                after the step would be needed. TypeError: for dtypes or devices that do not.
        """
        if self.bidirectional:
            raise ValueError("a step of a bidirectional stack would need what comes after it")
        if self.group is not None:
            raise ValueError(
                "a single step cannot be shared by ranks: set `group` to None on the process that "
                "takes it"
            )
        check_step(input, self.input_size, self._cells()[0].sample)
        batched = input.ndim == 2
        x = (input if batched else input[None])[:, None]
        output, state = self._layers(x, hx, batched, StepContext())
        return (output[:, 0] if batched else output[0, 0]), state

    @torch.no_grad()
    def decays(
        self,
        input: Tensor | PackedSequence,
        hx: State = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The decays a_t of every recurrence on an input; -1 / log a_t is a memory in steps.

        Arguments as in `forward`. Nothing is dropped out, no gradient is kept.

        Returns:
            By path ("layer0.forward.cell", "layer0.reverse.surrogate", ...) a, or |a| where it is
            complex, (B, T, ·) in the dtype of the state. Values at padded steps mean nothing.
        """
        if isinstance(input, PackedSequence):
            check_packed(input, self.input_size, lengths, reset)
            input, lengths = pad_packed_sequence(input, self.batch_first)
            lengths = lengths.to(input.device)
        decays: dict[str, list[Tensor]] = {}

        def record(
            path: str, gate: GateFunction, readout: Readout | None, pre: Sequence[Tensor]
        ) -> None:
            decays.setdefault(path, []).append(decays_of(gate, pre))

        self._run(input, hx, lengths, reset, record)
        return {
            path: torch.cat(chunks[::-1] if ".reverse." in path else chunks, 1)
            for path, chunks in decays.items()
        }

    def _cells(self) -> list[Cell]:
        """The cells, or wrappers of them that forward their attributes."""
        return cast("list[Cell]", list(self.cells))

    def _run(
        self,
        input: Tensor,
        hx: State,
        lengths: Tensor | None,
        reset: Tensor | None,
        recorder: Recorder | None = None,
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            refuse_script(type(self).__name__)
        ranks = self._ranks
        if ranks is not None:
            self._check_across_ranks(ranks, input, hx, lengths, reset)
        check_input(input, self.input_size, self.batch_first, self._cells()[0].sample)
        check_steps(input, self.batch_first, lengths, reset)
        batched = input.ndim == 3
        x = input
        if not batched:
            x = input[None]
            lengths, reset = (None if v is None else v[None] for v in (lengths, reset))
        elif not self.batch_first:
            x, reset = input.transpose(0, 1), None if reset is None else reset.transpose(0, 1)
        context = ScanContext(
            *(False, lengths, reset, self.backend, ranks, self.checkpoint_time),
            recorder=recorder,
            dropout=recorder is None,
        )
        if lengths is not None:
            chunk, steps = self.checkpoint_time, x.shape[1]
            local_lengths = lengths if ranks is None else ranks.within(lengths, steps, chunk)
            # The gradient of a weight multiplies x by 0 there, and NaN times 0 is NaN.
            x = x.masked_fill(padding_mask(local_lengths, x), 0)
        output, state = self._in_chunks(x, hx, batched, context)
        output = output[0] if not batched else output
        return output if self.batch_first or not batched else output.transpose(0, 1), state

    def _check_across_ranks(
        self,
        ranks: Ranks,
        input: Tensor,
        hx: State,
        lengths: Tensor | None,
        reset: Tensor | None,
    ) -> None:
        """Raises on every rank if the arguments of one are invalid, or differ between ranks."""

        def check_arguments() -> dict[str, object]:
            check_input(input, self.input_size, self.batch_first, self._cells()[0].sample)
            check_steps(input, self.batch_first, lengths, reset)
            chunk = self.checkpoint_time
            steps = input.shape[1 if self.batch_first and input.ndim == 3 else 0]
            if chunk is not None and chunk % ranks.size and steps * ranks.size > chunk:
                raise ValueError(
                    f"checkpoint_time={chunk} must be a multiple of {ranks.size}, the number of "
                    f"ranks that share each chunk"
                )
            return {
                "`checkpoint_time`": chunk,
                "The shape of `input`": tuple(input.shape),
                "`hx`, given or None,": hx is not None,
                "`lengths`, given or None,": lengths is not None,
                "`reset`, given or None,": reset is not None,
                "The mode, training or not,": self.training,
            }

        present = tuple([x is not None for x in (hx, lengths, reset)])
        shape = tuple(input.shape) if isinstance(input, Tensor) else None
        form = (type(self), self.extra_repr(), self.training, shape, present)
        check_together(ranks, form, check_arguments)

    def _in_chunks(
        self, x: Tensor, hx: State, batched: bool, context: ScanContext
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        """Runs `_layers`, chunk by chunk over time where that saves memory."""
        size = None if self.bidirectional else self._chunk(x, context)
        if size is None:
            return self._layers(x, hx, batched, context)

        def run(x: Tensor, hx: Any, lengths: Tensor | None, reset: Tensor | None) -> Any:
            of_chunk = replace(context, lengths=lengths, reset=reset, chunk=None)
            return self._layers(x, hx, batched, of_chunk)

        chunking = (context.lengths, context.reset, size)
        outputs, state = in_chunks(run, x, hx, *chunking, ranks=context.ranks)
        return torch.cat(outputs, 1), state

    def _chunk(self, x: Tensor, context: ScanContext) -> int | None:
        """Time steps of this rank in each recomputed chunk; None to run all of x at once."""
        size, steps, ranks = self.checkpoint_time, x.shape[1], context.ranks
        if size is None:
            return None
        if ranks is not None:
            # A rank's steps of several chunks are not consecutive, whether or not memory is saved.
            return size // ranks.size if steps * ranks.size > size else None
        saves = steps > size and torch.is_grad_enabled() and context.recorder is None
        return size if saves else None

    def _layer(
        self,
        cell: Cell,
        x: Tensor,
        carry: Tensor | None,
        context: ScanContext,
        of_stack: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """One layer in one direction; if bidirectional, in chunks where that saves memory.

        Each direction starts at the other one's end, so the next layer starts when all of a layer's
        output is computed.
        """
        size = self._chunk(x, context) if self.bidirectional else None
        if size is not None:

            def run(x: Tensor, carry: Any, lengths: Tensor | None, reset: Tensor | None) -> Any:
                of_chunk = replace(context, lengths=lengths, reset=reset, chunk=None)
                return cell(x, carry, of_chunk, **of_stack)

            chunking = (context.lengths, context.reset, size, context.reverse, context.ranks)
            outputs, carry = in_chunks(run, x, carry, *chunking)
            return torch.cat(outputs, 1), cast("Tensor", carry)
        y, carry = cell(x, carry, context, **of_stack)
        return y, carry

    def _layers(
        self, x: Tensor, hx: State, batched: bool, context: ScanContext
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        """All layers over x (B, T, input_size): the output (B, T, ·) and the state."""
        cells = self._cells()
        rows: tuple[int, ...] = (len(cells), x.shape[0]) if batched else (len(cells),)
        h_0, carry_0 = (None, None) if hx is None else cells[0].unpack(hx, rows, x.device)
        if not batched:
            h_0, carry_0 = (None if v is None else v[:, None] for v in (h_0, carry_0))
        h_n: list[Tensor] = []
        carry_n: list[Tensor] = []
        of_stack = self.for_cells()
        for layer in range(self.num_layers):
            outputs = []
            for reverse in (False, True)[: self.directions]:
                k = len(carry_n)
                prefix = f"layer{layer}.{'reverse' if reverse else 'forward'}"
                of_cell = replace(context, reverse=reverse, prefix=prefix)
                carry = None if carry_0 is None else carry_0[k]
                y, carry = self._layer(cells[k], x, carry, of_cell, of_stack[k])
                outputs.append(y)
                carry_n.append(carry)
                if cells[k].remembers_output:
                    h_n.append(of_cell.last(y, None if h_0 is None else h_0[k]))
            x = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
            if layer < self.num_layers - 1 and context.dropout:
                x = F.dropout(x, self.dropout, self.training)
        parts = [h_n, [cell.pack(carry) for cell, carry in zip(cells, carry_n, strict=True)]]
        state = [torch.stack(part) if batched else torch.cat(part) for part in parts if part]
        if self.strict_state:
            state = [part.to(x.dtype) for part in state]
        return x, (state[0], state[1]) if h_n else state[0]

    def __prepare_scriptable__(self) -> NoReturn:
        """See `refuse_script`."""
        refuse_script(type(self).__name__)

    def extra_repr(self) -> str:
        """Sizes, what differs from the default, the cell's own options and the backend."""
        defaults: dict[str, Any] = {"num_layers": 1, "bias": True, "batch_first": False}
        defaults |= {"dropout": 0.0, "bidirectional": False, "proj_size": 0, "memory": None}
        defaults |= {"checkpoint_time": None}
        shown = [f"{k}={getattr(self, k)}" for k, v in defaults.items() if getattr(self, k) != v]
        shown += [f"{k}={v!r}" for k, v in self.options.items() if v is not None]
        shown += [f"backend={self.backend!r}"]
        return ", ".join([str(self.input_size), str(self.hidden_size), *shown])


def _check_cell_type(layer_class: type[Stack]) -> None:
    cell_type = getattr(layer_class, "cell_type", None)
    if not (isinstance(cell_type, type) and issubclass(cell_type, Cell)):
        raise TypeError(
            f"{layer_class.__name__}.cell_type must be a subclass of lightning_lrnn.nn.cell.Cell, "
            f"as docs/extending.md shows it, got {cell_type!r}"
        )
