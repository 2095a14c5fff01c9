"""A class again, with its methods, on another package's base classes."""

from __future__ import annotations

from types import CellType, FunctionType
from typing import Any

__all__ = ["rebind_bases"]


def rebind_bases(kind: type, bases: dict[type, type], module: str) -> type:
    """The class as if it had been written with other base classes.

    What stands in its body is shared, but for functions that call `super()` or name `__class__`:
    the class that they mean is in their closure, so they are copied, with the new class there.
    What a method finds by a name among the globals of its module stays what it was.

    Args:
        kind: a class.
        bases: old base classes to new ones. What is made is added: the same class is made once.
        module: where it will be found by its name, for pickle and in configs.

    Returns:
        The new class; `kind` itself if it has none of the old base classes.
    """
    if kind in bases:
        return bases[kind]
    if not any(issubclass(kind, old) for old in bases):
        return kind
    cell = CellType()
    body = {
        name: _moved(value, kind, cell)
        for name, value in vars(kind).items()
        if name not in ("__dict__", "__weakref__")
    }
    # `type` puts the class that it makes into the cell, as it does for a class statement.
    body |= {"__module__": module, "__qualname__": kind.__qualname__, "__classcell__": cell}
    parents = tuple(rebind_bases(parent, bases, module) for parent in kind.__bases__)
    bases[kind] = type(kind)(kind.__name__, parents, body)
    return bases[kind]


def _moved(value: Any, kind: type, cell: CellType) -> Any:
    """A value of a class body with `cell` in the place of the cell that has the class."""
    if isinstance(value, (classmethod, staticmethod)):
        return type(value)(_moved(value.__func__, kind, cell))
    if isinstance(value, property):
        fget, fset, fdel = (_moved(f, kind, cell) for f in (value.fget, value.fset, value.fdel))
        return property(fget, fset, fdel, value.__doc__)
    if not isinstance(value, FunctionType):
        return value
    old = value.__closure__ or ()
    closure = tuple(_moved_cell(part, kind, cell) for part in old)
    if all(a is b for a, b in zip(closure, old, strict=True)):
        return value
    new = FunctionType(
        value.__code__, value.__globals__, value.__name__, value.__defaults__, closure
    )
    for name in ("__kwdefaults__", "__annotations__", "__qualname__", "__module__", "__doc__"):
        setattr(new, name, getattr(value, name))
    # A decorator leaves there what it has wrapped.
    vars(new).update({name: _moved(part, kind, cell) for name, part in vars(value).items()})
    return new


def _moved_cell(old: CellType, kind: type, cell: CellType) -> CellType:
    if old.cell_contents is kind:
        return cell
    # A decorator has what it wraps in a cell.
    content = _moved(old.cell_contents, kind, cell)
    return old if content is old.cell_contents else CellType(content)
