"""A byte language model: residual blocks of recurrent layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_lrnn.core.checks import check_counts, check_flags, check_numbers
from lightning_lrnn.core.ranks import part_of
from lightning_lrnn.data.text.windows import IGNORE, TextBatch
from lightning_lrnn.modules.metrics import BitsPerByte, Perplexity
from lightning_lrnn.modules.residual import ResidualModule, State
from lightning_lrnn.nn import GILRLSTM
from lightning_lrnn.nn.layer import LayerClass

__all__ = ["LanguageModel"]

VOCABULARY = 256
START = 0
"""The byte that stands before the first of a document."""


class LanguageModel(ResidualModule):
    """Predicts the next byte.

        x = embedding(byte before)
        x = x + dropout(rnn_l(norm_l(x)))           for every layer l
        logits = head(norm(x))

    Logged are the cross entropy, in nats, bits per byte and the perplexity of a byte. Predictions
    are the bits that each byte costs, (B, T), 0 at padding.

    Args:
        rnn: the recurrent layer, called with `input_size` and `hidden_size` once per block: a class
            or a `functools.partial` of one with options. A layer of `lightning_lrnn.nn`,
            `torch.nn.LSTM`, `GRU` or `RNN`, or any other whose instances map `(x, state,
            reset=...)` to `(y, state)`, batch first. Its name ("GILRLSTM"), its path, or
            {"class_path": ..., "init_args": ...} say the same, and are what a checkpoint contains.
        hidden_size: features everywhere.
        num_layers: residual blocks.
        dropout: on the output of each block.
        tie_weights: the head uses the embedding's weights.

    Raises:
        ValueError: if there is no such layer, or for options of it that cannot be.
    """

    fixed_options: ClassVar[dict[str, tuple[Any, str]]] = {
        **ResidualModule.fixed_options,
        "bidirectional": (False, "the model may not see the bytes that it predicts; leave it out"),
    }

    def __init__(
        self,
        rnn: LayerClass = GILRLSTM,
        hidden_size: int = 256,
        num_layers: int = 2,
        dropout: float = 0.0,
        tie_weights: bool = False,
        backend: str = "auto",
        carry_state: bool = True,
        lr: float = 5e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 50,
        total_steps: int | None = None,
        final_lr: float = 0.05,
    ) -> None:
        super().__init__(
            backend=backend,
            carry_state=carry_state,
            lr=lr,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            total_steps=total_steps,
            final_lr=final_lr,
        )
        check_counts(hidden_size=hidden_size)
        check_flags(tie_weights=tie_weights)
        self.embedding = nn.Embedding(VOCABULARY, hidden_size)
        self.make_blocks(rnn, hidden_size, num_layers, dropout)
        self.head = nn.Linear(hidden_size, VOCABULARY)
        if tie_weights:
            # Logits of a normalised x then start with a variance of 1.
            nn.init.normal_(self.embedding.weight, std=hidden_size**-0.5)
            self.head.weight = self.embedding.weight

    def forward(
        self, inputs: Tensor, state: State = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Logits of the next byte at every step.

        Args:
            inputs: bytes (B, T), integers below 256.
            state: that of a call before, one entry per layer; None for zeros.
            reset: bool (B, T), True where a document starts.

        Returns:
            Logits (B, T, 256) and the state after the last step.

        Raises:
            ValueError: for inputs of another form. IndexError: on a CPU, for what is no byte; see
                `check`.
        """
        if inputs.ndim != 2 or inputs.is_floating_point() or inputs.is_complex():
            raise ValueError(
                f"`inputs` must be bytes (B, T), integers below {VOCABULARY}, got {inputs.dtype} "
                f"of shape {tuple(inputs.shape)}"
            )
        x, state = self.blocks(self.embedding(inputs), state, reset=reset)
        return self.head(x), state

    def check(self, batch: TextBatch) -> None:
        """Raises for inputs that are no bytes."""
        low, high = (int(k) for k in batch.inputs.aminmax())
        if low < 0 or high >= VOCABULARY:
            raise ValueError(
                f"`inputs` must be bytes, 0 to {VOCABULARY - 1}, got {low if low < 0 else high}"
            )

    def loss(self, output: Tensor, batch: TextBatch) -> Tensor:
        """Cross entropy in nats, the mean over all bytes that are not padding."""
        return F.cross_entropy(
            output.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=IGNORE
        )

    def make_metrics(self) -> MetricCollection:
        """Bits per byte, and the perplexity of a byte, 2 to the power of them."""
        return MetricCollection({"bits_per_byte": BitsPerByte(), "perplexity": Perplexity()})

    def measure(self, metrics: MetricCollection, output: Any, batch: Any, loss: Tensor) -> None:
        """Updates both metrics from the loss, on which they depend alone."""
        metrics.update(loss, (batch.targets != IGNORE).sum())

    def weight(self, batch: TextBatch) -> int:
        """Returns the number of bytes that are not padding."""
        return int((batch.targets != IGNORE).sum())

    def segment(self, batch: TextBatch, rank: int, size: int) -> TextBatch:
        """Consecutive bytes of every stream; with the layers' `checkpoint_time`, of each chunk."""
        steps = batch.inputs.shape[1]
        if steps % size:
            raise ValueError(
                f"a window of {steps} bytes cannot be shared by {size} ranks: set `data.window` to "
                f"a multiple of {size}"
            )
        return TextBatch(*[part_of(x, rank, size, self.chunk_of_layers) for x in batch])

    def prediction(self, output: Tensor, batch: TextBatch) -> Tensor:
        """Bits that each byte costs, (B, T)."""
        nats = F.cross_entropy(
            output.transpose(1, 2).float(), batch.targets, ignore_index=IGNORE, reduction="none"
        )
        return nats / math.log(2)

    def generate(
        self,
        prompt: bytes = b"",
        length: int | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Iterator[bytes]:
        """Continues a document that starts with the prompt, byte by byte, step by step.

        Args:
            prompt: the start of the document, which is not repeated.
            length: number of bytes; None for no end.
            temperature: divides the logits; 0 takes the most probable byte.
            generator: random numbers of the sampling, on the model's device; None for PyTorch's.

        Yields:
            One byte at a time.

        Raises:
            ValueError: for a negative temperature or length. TypeError: for a prompt of characters.
        """
        check_numbers(0, temperature=temperature)
        if length is not None:
            check_counts(0, length=length)
        if not isinstance(prompt, bytes | bytearray):
            raise TypeError(f"`prompt` must be bytes, got {prompt!r}: `encode()` it")
        return self._generate(prompt, length, temperature, generator)

    def _generate(
        self,
        prompt: bytes,
        length: int | None,
        temperature: float,
        generator: torch.Generator | None,
    ) -> Iterator[bytes]:
        logits, state = self._continue(bytes([START]) + prompt, None)
        done = 0
        while length is None or done < length:
            if temperature == 0:
                byte = int(logits.argmax())
            else:
                p = (logits / temperature).softmax(-1)
                byte = int(torch.multinomial(p, 1, generator=generator))
            yield bytes([byte])
            done += 1
            if done != length:
                logits, state = self._continue(bytes([byte]), state)

    @torch.no_grad()
    def _continue(self, text: bytes, state: State) -> tuple[Tensor, State]:
        """Logits (256,) after the text. Restores the mode, as the caller may stop at any byte."""
        training = self.training
        self.eval()
        try:
            inputs = torch.tensor([list(text)], device=self.device)
            logits, state = self(inputs, state)
        finally:
            self.train(training)
        return logits[0, -1].float(), state
