"""For `__init_subclass__`: arguments described once, and former names of attributes."""

from __future__ import annotations

import inspect
import re
import warnings
from typing import Any

__all__ = ["Renamed", "inherit_arguments", "take_renamed"]

SECTION = re.compile(r"^Args:\n((?: {4}.*\n?|\n)+)", re.M)
ARGUMENT = re.compile(r"^ {4}(\w+): .*(?:\n {5,}.*)*", re.M)


def inherit_arguments(cls: type) -> None:
    """Completes the section `Args` of a class's docstring from those of its base classes.

    It adds the arguments that the constructor takes, by name or as `**options` for the base class,
    and that the docstring does not describe yet. So `help`, and jsonargparse for `--help`,
    show all of them. A docstring without such a section stays as it is.
    """
    doc = inspect.cleandoc(cls.__doc__ or "") + "\n"
    section = SECTION.search(doc)
    if section is None:
        return
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    open_ended = _catch_all(cls) is not None
    described, added = set(_arguments(cls)), []
    for base in cls.__mro__[1:]:
        for name, text in _arguments(base).items():
            taken = open_ended or name in parameters
            # A base class's entry for its own `**options` does not describe these arguments.
            if taken and name not in described and name != _catch_all(base):
                described.add(name)
                added.append(text)
    end = section.start() + len(section[0].rstrip())
    cls.__doc__ = "\n".join([doc[:end], *added, doc[end:].removeprefix("\n")]).rstrip()


def _catch_all(cls: type) -> str | None:
    """The name of `**options` in a constructor, None if it has none."""
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    return next((name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD), None)


def _arguments(cls: type) -> dict[str, str]:
    """The arguments that a class's own docstring describes, with their lines."""
    section = SECTION.search(inspect.cleandoc(vars(cls).get("__doc__") or "") + "\n")
    return {m[1]: m[0] for m in ARGUMENT.finditer(section[1])} if section else {}


class Renamed:
    """The former name of an attribute of a class, in the class that defines the attribute.

    Subclasses may still override the attribute by its former name, see `take_renamed`; `super()`
    then finds what they override.

    Args:
        name: of the attribute now.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __set_name__(self, owner: type, former: str) -> None:
        """Notes the former name."""
        self.former = former

    def __get__(self, instance: Any, owner: type) -> Any:
        """The attribute, of the instance if there is one."""
        _warn(owner, self.former, self.name, 3)
        found_in: Any = owner if instance is None else instance
        # An instance whose class has the former name comes here from `super()` in that class.
        overriding = [c for c in owner.__mro__ if vars(c).get(self.former, self) is not self]
        if overriding:
            found_in = super(overriding[-1], found_in)
        return getattr(found_in, self.name)


def take_renamed(cls: type) -> None:
    """Sets the attributes that the body of a class defines by their former names.

    For `__init_subclass__`, whose caller is warned.
    """
    for base in cls.__mro__[1:]:
        for former, renamed in list(vars(base).items()):
            if not isinstance(renamed, Renamed) or renamed.name in vars(cls):
                continue
            if former in vars(cls):
                _warn(cls, former, renamed.name, 4)
                setattr(cls, renamed.name, vars(cls)[former])


def _warn(cls: type, former: str, name: str, stacklevel: int) -> None:
    """Names the attribute; `stacklevel` is that of `warnings.warn`."""
    message = f"{cls.__name__}.{former} is {cls.__name__}.{name} now"
    warnings.warn(message, DeprecationWarning, stacklevel)
