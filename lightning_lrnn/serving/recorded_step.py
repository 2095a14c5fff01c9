"""A model's step, recorded and replayed without the overhead around its matmuls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lightning_lrnn.nn.stack import Stack
from lightning_lrnn.serving.replay import Replay

__all__ = ["RecordedStep"]


class RecordedStep:
    """A step of a model, recorded once and replayed in the same memory, as CUDA graphs are.

        step = lrnn.RecordedStep(rnn, torch.zeros(1, 1, 64))
        y_1 = step(x_1).clone()
        y_2 = step(x_2)                              # in the memory of the output before

    The same as `y_t, state = module(x_t, state)` from a state of zeros, without gradients. The
    layers' equations run once, here; after that a step runs the recorded operations, each into the
    same memory as before, and gate, recurrence and readout in one compiled call. With
    the layers of this package a step allocates no tensor.

    Parameters that change in place, by an optimizer or `load_state_dict`, count from the next step
    on. What Python does beside tensors, hooks for example, happens once, and exchanged submodules
    and another `backend` are not seen. For one thread at a time.

    Args:
        module: maps `(input, state)` to `(output, state)`, and takes None for a state of zeros:
            every layer of this package, and models of them such as `LanguageModel`. On a CPU.
        input: an example. All inputs have its shape, of one time step or a few, and its dtype.

    Attributes:
        module: as given.

    Raises:
        ValueError: if a layer is bidirectional: what comes after the step would be needed.
        TypeError: if they are none, `input` is not on a CPU, or `module` does not return a pair.
        RuntimeError: under autocast; if the module draws random numbers, as dropout does in
            training mode, or looks at values.
    """

    def __init__(self, module: nn.Module, input: Tensor) -> None:
        if not isinstance(module, nn.Module) or not isinstance(input, Tensor):
            types = f"{type(module).__name__} and {type(input).__name__}"
            raise TypeError(f"`module` must be a torch.nn.Module and `input` a tensor, got {types}")
        if input.device.type != "cpu":
            raise TypeError(
                f"`input` is on {input.device}, steps are recorded on a CPU; "
                f"torch.cuda.make_graphed_callables records on CUDA"
            )
        if any(isinstance(m, Stack) and m.bidirectional for m in module.modules()):
            raise ValueError("a step of a bidirectional stack would need what comes after it")
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("record a step outside of autocast, in the parameters' own dtype")
        self.module = module
        with torch.no_grad():
            self._input = input.detach().clone(memory_format=torch.contiguous_format)
            result = module(self._input)
            if not isinstance(result, tuple) or len(result) != 2:
                raise TypeError(
                    f"`module` must return (output, state), got {type(result).__name__}"
                )
            self._state, self._form = tree_flatten(tree_map(torch.zeros_like, result[1]))
            with Replay() as self._replay:
                self._output, state = module(self._input, self._tree())
                for before, after in zip(self._state, tree_flatten(state)[0], strict=True):
                    before.copy_(after)
        self._parameters = [
            (tensors, name, tensor, tensor.data_ptr())
            for m in module.modules()
            for tensors in (m._parameters, m._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        self.reset()

    @torch.inference_mode()
    def __call__(self, input: Tensor) -> Any:
        """Computes one step.

        Args:
            input: of the example's shape and dtype.

        Returns:
            The module's output, in the same memory at every step: `clone()` it to keep it.

        Raises:
            ValueError: for another shape, TypeError: for another dtype or device.
            RuntimeError: if a parameter is no more the tensor that was recorded.
        """
        _check("input", input, self._input)
        for tensors, name, tensor, address in self._parameters:
            if tensors.get(name) is not tensor or tensor.data_ptr() != address:
                raise RuntimeError(
                    f"`{name}` is another tensor than the one recorded, or lies elsewhere: "
                    f"make a new RecordedStep"
                )
        self._input.copy_(input)
        self._replay.run()
        return self._output

    @torch.inference_mode()
    def reset(self) -> None:
        """Sets the state to zeros."""
        for state in self._state:
            state.zero_()

    @property
    def state(self) -> Any:
        """The state, as `module` takes and returns it: a copy. Setting it copies, too."""
        return tree_map(torch.clone, self._tree())

    @state.setter
    @torch.inference_mode()
    def state(self, state: Any) -> None:
        tensors, form = tree_flatten(state)
        if form != self._form:
            raise ValueError(f"`state` must be as the module returns it, {self._form}, got {form}")
        for index, (new, recorded) in enumerate(zip(tensors, self._state, strict=True)):
            _check(f"state[{index}]", new, recorded)
        for new, recorded in zip(tensors, self._state, strict=True):
            recorded.copy_(new)

    def _tree(self) -> Any:
        return tree_unflatten(self._state, self._form)


def _check(name: str, x: Any, recorded: Tensor) -> None:
    if not isinstance(x, Tensor) or x.shape != recorded.shape:
        form = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"`{name}` was recorded with shape {tuple(recorded.shape)}, got {form}")
    if x.dtype != recorded.dtype or x.device != recorded.device:
        raise TypeError(
            f"`{name}` was recorded in {recorded.dtype} on {recorded.device}, got {x.dtype} "
            f"on {x.device}"
        )
