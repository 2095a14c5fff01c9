"""A function as a command: its signature names the options, its docstring describes them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any, NoReturn

import docstring_parser
from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type

from lightning_lrnn.core.checks import UserError

__all__ = ["NaturalNumber", "PositiveInteger", "PositiveNumber", "call"]

REJECTED = re.compile(r'Parser key "(?P<option>\S+)":\s+(?:Not of type \w+: )?(?P<reason>.*)', re.S)

if TYPE_CHECKING:
    NaturalNumber = int
    PositiveInteger = int
    PositiveNumber = float
else:

    class NaturalNumber(int):
        """An integer of at least 0."""

    class PositiveInteger(int):
        """An integer of at least 1."""

    class PositiveNumber(float):
        """A finite number above 0."""


class _Parser(ArgumentParser):
    """Raises `UserError` in place of printing the usage and exiting."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises, in the words of argparse."""
        if match := REJECTED.fullmatch(message):
            message = f"argument --{match['option']}: {' '.join(match['reason'].split())}"
        raise UserError(f"{message}; `{self.prog} --help` shows what there is") from ex


def call(function: Callable[..., Any], prog: str, words: list[str]) -> Any:
    """Calls a function with the arguments on a command line.

    Args:
        function: parameters without a default are positional, all others are options; `*names`
            takes one or more words.
        prog: the command, for help and messages.
        words: the command line without the command.

    Returns:
        What the function returns.

    Raises:
        UserError: if the words do not fit the signature.
    """
    description = (function.__doc__ or "").partition("\n\n    Args:")[0]
    parser = _Parser(prog=prog, description=description, allow_abbrev=True)
    parameters = signature(function).parameters.values()
    several = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]
    for documented in docstring_parser.parse(function.__doc__ or "").params:
        if documented.arg_name.lstrip("*") in several:
            parser.add_argument(*several, nargs="+", type=str, help=documented.description)
    parser.add_function_arguments(function, as_group=False, as_positional=True)
    options = parser.parse_args(words).as_dict()
    variadic = [value for name in several for value in options.pop(name)]
    return function(*variadic, **options)


def _number(number_type: type[int] | type[float], value: Any) -> Any:
    try:
        return number_type(value)
    except (ValueError, TypeError):
        raise ValueError(f"invalid {number_type.__name__} value: {value!r}") from None


def _natural(value: Any) -> int:
    number: int = _number(int, value)
    if number < 0:
        raise ValueError(f"{value} is no number of at least 0")
    return number


def _positive(number_type: type[int] | type[float]) -> Callable[[Any], int | float]:
    def parse(value: Any) -> int | float:
        number: int | float = _number(number_type, value)
        if not 0 < number < math.inf:
            raise ValueError(f"{value} is not a positive number")
        return number

    return parse


def _is_number(value: Any, number_type: type) -> bool:
    """Whether a value is parsed already, as defaults are."""
    return isinstance(value, (int, float))


if not TYPE_CHECKING:
    register_type(NaturalNumber, deserializer=_natural, type_check=_is_number)
    register_type(PositiveInteger, deserializer=_positive(int), type_check=_is_number)
    register_type(PositiveNumber, deserializer=_positive(float), type_check=_is_number)
