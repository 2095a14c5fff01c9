"""A class on another base, compared with the class statement that would have made it.

Proved against: `_moved` returning its value (super() goes to the old base); no case for properties,
for class methods, for closures; `__dict__` of a function not moved; bases not rebased.
"""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import sys

import pytest
import torch

from lightning_lrnn.L._rebind import rebind_bases


class Old:
    base = "old"

    def where(self) -> list[str]:
        return [self.base]

    @classmethod
    def kind(cls) -> list[str]:
        return [self_name(cls), "Old"]

    @staticmethod
    def number() -> int:
        return 1

    @property
    def size(self) -> int:
        return 1

    @size.setter
    def size(self, value: int) -> None:
        self.kept = ["Old", value]


class New(Old.__base__):
    base = "new"

    def where(self) -> list[str]:
        return [self.base]

    @classmethod
    def kind(cls) -> list[str]:
        return [self_name(cls), "New"]

    @staticmethod
    def number() -> int:
        return 2

    @property
    def size(self) -> int:
        return 2

    @size.setter
    def size(self, value: int) -> None:
        self.kept = ["New", value]


def self_name(cls: type) -> str:
    return cls.__qualname__


def traced(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return [*function(*args, **kwargs), "traced"]

    return wrapper


class Named:
    """Not on either base."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner = owner


class Registered(Old):
    """A base in between, that is told of its subclasses."""

    subclasses: tuple[type, ...] = ()

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        __class__.subclasses = (*__class__.subclasses, cls)

    def where(self) -> list[str]:
        return [*super().where(), "registered"]


class Mixed:
    """Not on either base."""

    def where(self) -> list[str]:
        return [*super().where(), "mixed"]


class Kind(Mixed, Registered):
    """What it is for."""

    attribute = Named()

    def __init__(self, a: int, *, b: str = "b") -> None:
        super().__init__()
        self.ab = (a, b)

    def where(self) -> list[str]:
        return [*super().where(), "kind"]

    @traced
    def nested(self) -> list[str]:
        def inner() -> list[str]:
            return super(__class__, self).where()

        return inner()

    @classmethod
    def kind(cls) -> list[str]:
        return [*super().kind(), self_name(__class__)]

    @classmethod
    @traced
    def traced_kind(cls) -> list[str]:
        return super().kind()

    @staticmethod
    def number() -> int:
        return super(__class__, __class__).number() + 10

    @property
    def size(self) -> int:
        """Documented."""
        return super().size + 10

    @size.setter
    def size(self, value: int) -> None:
        super(__class__, type(self)).size.fset(self, value + 10)

    @torch.no_grad()
    def without_gradient(self) -> tuple[bool, list[str]]:
        return torch.is_grad_enabled(), super().where()

    def free(self) -> int:
        return 1


BASES = {Old: New}
Other = rebind_bases(Kind, BASES, "test_rebase_other")


@pytest.mark.parametrize(("kind", "base"), [(Kind, "Old"), (Other, "New")])
def test_super_goes_to_the_base(kind, base) -> None:
    x, number = kind(1), {"Old": 1, "New": 2}[base]
    assert x.ab == (1, "b")
    assert x.where() == [base.lower(), "registered", "mixed", "kind"]
    assert x.nested() == [base.lower(), "registered", "mixed", "traced"]
    assert x.without_gradient() == (False, [base.lower(), "registered", "mixed"])
    assert kind.kind() == ["Kind", base, "Kind"]
    assert kind.traced_kind() == ["Kind", base, "traced"]
    assert kind.number() == number + 10
    assert x.size == number + 10
    x.size = 5
    assert x.kept == [base, 15]


def test_classes_between_are_made_once() -> None:
    names = [c.__name__ for c in Other.__mro__]
    assert names == ["Kind", "Mixed", "Registered", "New", "object"]
    assert Other.__mro__[1] is Mixed
    assert Other.__mro__[2] is BASES[Registered] is not Registered
    assert rebind_bases(Kind, BASES, "elsewhere") is Other
    assert rebind_bases(Mixed, BASES, "elsewhere") is Mixed
    # With what the body had when it was copied.
    assert BASES[Registered].subclasses == (Kind, Other)
    assert Registered.subclasses == (Kind,)


def test_what_it_says_of_itself() -> None:
    assert (Other.__module__, Other.__qualname__) == ("test_rebase_other", "Kind")
    assert Other.__doc__ == Kind.__doc__ and Other.size.__doc__ == "Documented."
    assert inspect.signature(Other) == inspect.signature(Kind)
    assert Other.__init__.__qualname__ == "Kind.__init__"
    # Whose names the annotations of a function are, and where its source is.
    assert Other.__init__.__module__ == __name__
    assert inspect.getsource(Other.where) == inspect.getsource(Kind.where)
    assert Other.nested.__wrapped__.__closure__[0].cell_contents is Other


def test_what_needs_no_class_is_shared() -> None:
    assert Other.free is Kind.free
    assert Other.where is not Kind.where


def test_subclass_and_copies(monkeypatch) -> None:
    class Mine(Other):
        def where(self) -> list[str]:
            return [*super().where(), "mine"]

    assert Mine(1).where() == ["new", "registered", "mixed", "kind", "mine"]
    assert type(copy.deepcopy(Other(1))) is Other
    monkeypatch.setitem(sys.modules, "test_rebase_other", type("", (), {"Kind": Other}))
    assert type(pickle.loads(pickle.dumps(Other(1)))) is Other
