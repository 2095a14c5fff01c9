"""`lightning-lrnn generate`: text that a trained language model samples."""

from __future__ import annotations

import codecs
import inspect
import sys
from typing import TYPE_CHECKING, Any

from lightning_lrnn.cli.typed import NaturalNumber, PositiveInteger, PositiveNumber, call
from lightning_lrnn.core.checks import UserError

if TYPE_CHECKING:
    from lightning_lrnn.modules import LanguageModel

__all__ = ["generate", "main"]


def main(words: list[str]) -> None:
    """Runs the command; see `generate`."""
    call(generate, "lightning-lrnn generate", words[1:])


def generate(
    checkpoint: str,
    prompt: str = "def ",
    length: PositiveInteger = 400,
    temperature: PositiveNumber = 0.7,
    seed: NaturalNumber = 0,
    backend: str = "auto",
    rnn: str | None = None,
) -> None:
    """Prints a prompt and the text with which a trained LanguageModel continues it.

    Args:
        checkpoint: a file that `fit` wrote.
        prompt: text to continue.
        length: number of bytes to sample.
        temperature: below 1 for more likely text, above 1 for more varied text.
        seed: of the sampling.
        backend: computes the recurrence; `lightning-lrnn backends` lists them.
        rnn: path of a layer of your own that the checkpoint has, such as own.Leaky: its module is
            imported.
    """
    # Here, so that the help need not wait for Lightning.
    import torch

    from lightning_lrnn.backends import Request, resolve
    from lightning_lrnn.modules.checkpoint import read
    from lightning_lrnn.nn.layer import import_named

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resolve(backend, Request(device, torch.float32))
    if not prompt:
        raise UserError("the prompt is empty; give at least one character, a newline perhaps")
    import_named(rnn)
    model = _language_model(checkpoint, read(checkpoint), backend, rnn).to(device)
    # Sampled bytes may stop in the middle of a character, or be none at all; consoles differ in
    # what they can show.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    generator = torch.Generator(device).manual_seed(seed)
    print(prompt, end="", flush=True)
    for sampled in model.generate(prompt.encode(), length, temperature, generator):
        print(decoder.decode(sampled), end="", flush=True)
    print(decoder.decode(b"", final=True))


def _language_model(
    path: str, checkpoint: dict[str, Any], backend: str, own: str | None
) -> LanguageModel:
    """The model of a checkpoint, which may contain anything.

    Raises:
        UserError: if the checkpoint is not one of a LanguageModel, or has a layer that is neither
            known nor the user's `own`, or another one than `own`.
    """
    from lightning_lrnn.modules import LanguageModel
    from lightning_lrnn.nn.layer import Layer, is_known

    options = checkpoint.get("hyper_parameters", {})
    layer = options.get("rnn")
    named = layer.get("class_path") if isinstance(layer, dict) else layer
    if own is not None and isinstance(named, str):
        try:
            layer_class = Layer.of(own).path
        except ValueError as error:
            raise UserError(str(error)) from error
        if layer_class not in (named, f"lightning_lrnn.nn.{named}"):
            raise UserError(
                f"{path} has the layer {named!r}, and --rnn says {own!r}: leave out --rnn, or give "
                f"a checkpoint with that layer"
            )
    if own is None and isinstance(named, str) and not is_known(named):
        raise UserError(
            f"{path} has the layer {named!r}, which is none of this package; if it is to be made, "
            f"say --rnn={named}"
        )
    # A subclass may have had more.
    known = {
        name: options[name]
        for name in inspect.signature(LanguageModel).parameters
        if name in options
    }
    try:
        model = LanguageModel(**{**known, "backend": backend})
        model.load_state_dict(checkpoint["state_dict"])
        return model
    # Whatever a wrong option or weight raises.
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        owner = options.get("_class_path", "another model")
        raise UserError(
            f"{path} is not a checkpoint of a LanguageModel but of {owner} "
            f"({(lines or [type(error).__name__])[-1]}); give one that `lightning-lrnn fit` wrote"
        ) from error
