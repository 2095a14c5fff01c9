"""The backbone of every model: residual blocks of recurrent layers."""

from __future__ import annotations

import inspect
import os
from os import PathLike
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from lightning_lrnn.core.checks import check_counts, check_numbers
from lightning_lrnn.modules.base import RecurrentModule
from lightning_lrnn.modules.checkpoint import read
from lightning_lrnn.nn.layer import Layer

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ResidualModule", "State"]

State = list[Any] | None


class ResidualModule(RecurrentModule):
    """A RecurrentModule with residual blocks, whose recurrent layer is an option.

        x = x + dropout(mix_l(rnn_l(norm_l(x))))    for every layer l
        x = norm(x)

    `mix` is a linear map from both directions to the width of x where the layer is bidirectional,
    and nothing else. A subclass calls `make_blocks` in its constructor and `blocks` in `forward`.
    """

    fixed_options: ClassVar[dict[str, tuple[Any, str]]] = {
        **RecurrentModule.fixed_options,
        "proj_size": (0, "the output is added to the block's input; set the model's `hidden_size`"),
    }

    def make_blocks(self, rnn: Any, hidden_size: int, num_layers: int, dropout: float) -> None:
        """Makes the blocks, and keeps the constructor's arguments as hyperparameters.

        Args:
            rnn: the recurrent layer, in any form that `lightning_lrnn.nn.layer.Layer.of` reads.
            hidden_size: features of x.
            num_layers: blocks.
            dropout: on the output of each block.

        Raises:
            ValueError: if there is no such layer, or for options of it or sizes that cannot be.
        """
        check_counts(hidden_size=hidden_size, num_layers=num_layers)
        check_numbers(0, 1, dropout=dropout)
        layer = Layer.of(rnn, self.fixed_options)
        self.save_hyperparameters(ignore=["backend"], frame=self._constructor())
        self.keep("rnn", layer.plain())
        self.directions = layer.directions
        self.norms = nn.ModuleList(nn.RMSNorm(hidden_size) for _ in range(num_layers))
        self.rnns = nn.ModuleList(layer.make(hidden_size) for _ in range(num_layers))
        self.mixes = nn.ModuleList(
            nn.Linear(self.directions * hidden_size, hidden_size, bias=False)
            if self.directions > 1
            else nn.Identity()
            for _ in range(num_layers)
        )
        # The setter passes it on to the layers, which exist only now.
        self.backend = self.backend
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.RMSNorm(hidden_size)

    def keep(self, name: str, value: Any) -> None:
        """Replaces the value of a hyperparameter by plain data, if there is one of that name."""
        if name in self.hparams:
            self.save_hyperparameters({name: value})

    def _constructor(self) -> FrameType | None:
        """The frame of the constructor that was called: that of the subclass, if there is one.

        `load_from_checkpoint` calls it with the same arguments. Those that it passes to the
        constructors of its base classes are no hyperparameters.
        """
        constructor = None
        frame = inspect.currentframe()
        while frame is not None:
            if frame.f_code.co_name == "__init__" and frame.f_locals.get("self") is self:
                constructor = frame
            frame = frame.f_back
        return constructor

    def blocks(self, x: Tensor, state: State = None, **steps: Tensor | None) -> tuple[Tensor, Any]:
        """Runs all blocks over a window.

        Args:
            x: (B, T, hidden_size).
            state: that of a call before, one entry per layer; None for zeros.
            steps: `lengths` (B,) and `reset` (B, T), given to the layers where they are not None.

        Returns:
            The normalised x (B, T, hidden_size), and the state after the last step.

        Raises:
            ValueError: for another number of states.
        """
        if state is not None and not (
            isinstance(state, list | tuple) and len(state) == len(self.rnns)
        ):
            form = f"{len(state)}" if isinstance(state, list | tuple) else type(state).__name__
            raise ValueError(
                f"`state` must be a list of {len(self.rnns)} states, one for each layer, got {form}"
            )
        options = {name: value for name, value in steps.items() if value is not None}
        after = []
        parts = zip(self.norms, self.rnns, self.mixes, strict=True)
        for layer, (norm, rnn, mix) in enumerate(parts):
            y, last = rnn(norm(x), None if state is None else state[layer], **options)
            x = x + self.dropout(mix(y))
            after.append(last)
        return self.norm(x), after

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Loads as Lightning does, but makes the model of `cls` itself and reads plain data only.

        Lightning would pass options of the command line in a checkpoint to jsonargparse, which
        makes objects of any class that an option of open type names; and it would run code from a
        URL. `weights_only=False` reads a file that may run code.
        """
        kwargs = {"_instantiator": None, **kwargs}
        if kwargs.get("weights_only") is None and len(args) < 4:
            kwargs["weights_only"] = True
        try:
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        except Exception as error:
            # Lightning does not check the file; `read` does, and raises an error that explains.
            if isinstance(checkpoint_path, str | PathLike) and not isinstance(error, OSError):
                read(os.fspath(checkpoint_path), kwargs.get("weights_only") is not False)
            raise
