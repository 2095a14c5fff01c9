"""Arguments that constructors have in common are described once, at the base class."""

from __future__ import annotations

import inspect
import re

__all__ = ["inherit_arguments"]

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
