"""`lightning-lrnn demo`: the demos as commands."""

from __future__ import annotations

from collections.abc import Callable

from lightning_lrnn.cli.parser import Parser, Passing
from lightning_lrnn.cli.typed import NaturalNumber, PositiveInteger, PositiveNumber, call
from lightning_lrnn.core.checks import UserError

__all__ = ["classify", "long_memory", "main", "ranks", "switch", "text"]


def main(words: list[str]) -> None:
    """Runs the demo that the second word names."""
    parser = Parser(prog="lightning-lrnn demo")
    demos = parser.add_subparsers(
        title="demos", metavar="DEMO", dest="demo", required=True, parser_class=Passing
    )
    functions: dict[str, Callable[..., None]] = {
        "text": text,
        "long-memory": long_memory,
        "switch": switch,
        "classify": classify,
        "ranks": ranks,
    }
    for name, function in functions.items():
        purpose = (function.__doc__ or "").splitlines()[0].rstrip(".")
        demos.add_parser(name, help=f"{purpose[0].lower()}{purpose[1:]}", add_help=False)
    options = parser.parse_args(words[1:])
    call(functions[options.demo], f"lightning-lrnn demo {options.demo}", options.words)


def text(
    seconds: PositiveNumber = 35.0, folder: str = "runs/demo", seed: NaturalNumber = 0
) -> None:
    """Train a byte language model on the standard library's source.

    Args:
        seconds: training time of each model.
        folder: for logs and figures.
        seed: of weights and samples.
    """
    from lightning_lrnn.cli.demos import text

    text.main(seconds, folder, seed)


def long_memory(
    steps: PositiveInteger = 4096,
    seconds: PositiveNumber = 45.0,
    folder: str = "runs/demo-long-memory",
    seed: NaturalNumber = 0,
) -> None:
    """Remember the first of thousands of symbols, beside torch.nn.LSTM.

    Args:
        steps: length of a sequence.
        seconds: maximum training time of each model.
        folder: for the figure.
        seed: of weights and data.
    """
    from lightning_lrnn.cli.demos import long_memory

    long_memory.main(steps, seconds, folder, seed)


def switch(
    rnn: str = "auto",
    steps: PositiveInteger = 50,
    folder: str = "runs/demo-switch",
    seed: NaturalNumber = 0,
) -> None:
    """Switch a project that knows nothing of this package, before and after.

    Args:
        rnn: layer to switch to.
        steps: training steps of each run.
        folder: for text and checkpoint.
        seed: of weights and dropout.
    """
    from lightning_lrnn import SwitchError
    from lightning_lrnn.cli.demos import switch

    try:
        switch.main(rnn, steps, folder, seed)
    except (SwitchError, ValueError) as error:
        raise UserError(str(error)) from error


def classify(
    epochs: PositiveInteger = 4,
    folder: str = "runs/demo-classify",
    seed: NaturalNumber = 0,
) -> None:
    """Switch a classifier of packed sequences, and compare time and F1.

    Args:
        epochs: of each run.
        folder: for the figure.
        seed: of the split, weights and order.
    """
    from lightning_lrnn.cli.demos import classify

    classify.main(epochs, folder, seed)


def ranks(
    ranks: PositiveInteger = 2,
    window: PositiveInteger = 65_536,
    steps: PositiveInteger = 5,
    folder: str = "runs/demo-ranks",
    seed: NaturalNumber = 0,
) -> None:
    """Share one sequence among processes of this machine, beside one process.

    Args:
        ranks: processes that share it.
        window: steps of the sequence, a multiple of `ranks`.
        steps: updates of each run.
        folder: for configs and what the runs leave.
        seed: of weights and data.
    """
    from lightning_lrnn.cli.demos import ranks as demo

    demo.main(ranks, window, steps, folder, seed)
