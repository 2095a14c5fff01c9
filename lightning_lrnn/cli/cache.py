"""`lightning-lrnn cache`: the compiled kernels on disk."""

from __future__ import annotations

from lightning_lrnn.backends import kernel_cache
from lightning_lrnn.cli.parser import Parser
from lightning_lrnn.cli.tables import counted
from lightning_lrnn.core.checks import UserError

__all__ = ["main"]


def main(words: list[str]) -> None:
    """Runs `cache info` or `cache clear`."""
    parser = Parser(prog="lightning-lrnn cache")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    actions.add_parser("info", help="where they are, and their size").set_defaults(run=info)
    actions.add_parser("clear", help="delete them").set_defaults(run=clear)
    parser.parse_args(words[1:]).run()


def info() -> None:
    """Prints the folder, the number and the size of the compiled kernels.

    Raises:
        UserError: if the folder cannot be read.
    """
    try:
        folder = kernel_cache.cache_folder()
        number, size = kernel_cache.cache_size()
    except (OSError, RuntimeError) as error:
        raise UserError(f"the folder of compiled kernels cannot be read: {error}") from error
    moves = f"({kernel_cache.ENVIRONMENT_VARIABLE} moves it)"
    print(f"{folder}: {counted(number, 'compiled kernel')}, {size / 1e6:.2f} MB {moves}")


def clear() -> None:
    """Deletes the compiled kernels and prints their number and size.

    Raises:
        UserError: if one cannot be deleted.
    """
    try:
        folder = kernel_cache.cache_folder()
        number, size = kernel_cache.clear_cache()
    except (OSError, RuntimeError) as error:
        raise UserError(f"compiled kernels cannot be deleted: {error}") from error
    print(f"{folder}: {counted(number, 'file')} deleted, {size / 1e6:.2f} MB")
