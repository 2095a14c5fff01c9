"""Every option of a layer, a module, data and a callback is described, once.

Seen to fail: `inherit_arguments` without effect; a ditto mark in a docstring.
"""

from __future__ import annotations

import inspect
import re

import pytest

from lightning_lrnn import callbacks, data, modules, nn
from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.core.subclasses import inherit_arguments
from lightning_lrnn.data import SequenceData
from lightning_lrnn.modules import RecurrentModule
from lightning_lrnn.nn.stack import Stack

CLASSES = {
    f"{module.__name__}.{name}": kind
    for module in (nn, modules, data, callbacks)
    for name in module.__all__
    if inspect.isclass(kind := getattr(module, name))
    and issubclass(kind, (Stack, RecurrentModule, SequenceData, Callback))
    and ("__init__" in vars(kind) or issubclass(kind, Stack))
}


def described(kind: type) -> dict[str, str]:
    doc = inspect.cleandoc(kind.__doc__ or "") + "\n"
    section = re.search(r"^Args:\n((?: {4}.*\n|\n)+)", doc, re.M)
    return dict(re.findall(r"^ {4}(\w+): (.*)", section[1], re.M)) if section else {}


def options(kind: type) -> set[str]:
    """Of a constructor, and of those that its `**options` go to."""
    actual: set[str] = set()
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters
        actual |= {
            name
            for name, p in parameters.items()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and name != "self"
        }
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
        if base is Stack:  # its options go to its cells
            break
    return actual


@pytest.mark.parametrize("name", CLASSES)
def test_every_option_is_described(name: str) -> None:
    texts = described(CLASSES[name])
    assert options(CLASSES[name]) <= set(texts)
    assert not [text for text in texts.values() if text.startswith('"') and len(text) < 3]


class Base:
    """Base.

    Args:
        first: of the base,
            on two lines.
        second: of the base.
        hidden: of the base.
        options: what else there is.
    """

    def __init__(self, first: int, second: int = 1, hidden: int = 2, **options: int) -> None: ...


def test_arguments_come_from_the_base_class() -> None:
    class Closed(Base):
        """Closed.

        Args:
            own: of the class.
            second: of the class.

        Attributes:
            third: something.
        """

        def __init__(self, own: int, first: int, second: int = 1) -> None: ...

    class Open(Base):
        """Open.

        Args:
            own: of the class.
        """

        def __init__(self, own: int, **options: int) -> None: ...

    class Without(Base):
        """Without a section."""

    for kind in (Closed, Open, Without):
        inherit_arguments(kind)
        before = kind.__doc__
        inherit_arguments(kind)
        assert kind.__doc__ == before
    assert list(described(Closed)) == ["own", "second", "first"]
    assert described(Closed)["second"] == "of the class."
    assert "        on two lines.\n\nAttributes:\n    third: something." in Closed.__doc__
    assert list(described(Open)) == ["own", "first", "second", "hidden"]
    assert Without.__doc__ == "Without a section."
