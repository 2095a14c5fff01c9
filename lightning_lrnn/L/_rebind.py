"""A class again, with its methods, on another package's base classes."""

from __future__ import annotations

from types import CellType, FunctionType
from typing import Any

__all__ = ["rebind_bases"]


def rebind_bases(cls: type, bases: dict[type, type], module: str) -> type:
    """The class as if it had been written with other base classes.

    What stands in its body is shared, but for functions that call `super()` or name `__class__`:
    the class that they mean is in their closure, so they are copied, with the new class there.
    What a method finds by a name among the globals of its module stays what it was.

    Args:
        cls: a class.
        bases: old base classes to new ones. What is made is added: the same class is made once.
        module: where it will be found by its name, for pickle and in configs.

    Returns:
        The new class; `cls` itself if it has none of the old base classes.
    """
    if cls in bases:
        return bases[cls]
    if not any(issubclass(cls, old) for old in bases):
        return cls
    cell = CellType()
    body = {
        name: _moved(value, cls, cell)
        for name, value in vars(cls).items()
        if name not in ("__dict__", "__weakref__")
    }
    # `type` puts the class that it makes into the cell, as it does for a class statement.
    body |= {"__module__": module, "__qualname__": cls.__qualname__, "__classcell__": cell}
    parents = tuple(rebind_bases(parent, bases, module) for parent in cls.__bases__)
    bases[cls] = type(cls)(cls.__name__, parents, body)
    return bases[cls]


def _moved(value: Any, cls: type, cell: CellType) -> Any:
    """A value of a class body with `cell` in the place of the cell that has the class."""
    if isinstance(value, (classmethod, staticmethod)):
        return type(value)(_moved(value.__func__, cls, cell))
    if isinstance(value, property):
        fget, fset, fdel = (_moved(f, cls, cell) for f in (value.fget, value.fset, value.fdel))
        return property(fget, fset, fdel, value.__doc__)
    if not isinstance(value, FunctionType):
        return value
    old = value.__closure__ or ()
    closure = tuple(_moved_cell(part, cls, cell) for part in old)
    if all(a is b for a, b in zip(closure, old, strict=True)):
        return value
    new = FunctionType(
        value.__code__, value.__globals__, value.__name__, value.__defaults__, closure
    )
    for name in ("__kwdefaults__", "__annotations__", "__qualname__", "__module__", "__doc__"):
        setattr(new, name, getattr(value, name))
    # A decorator leaves there what it has wrapped.
    vars(new).update({name: _moved(part, cls, cell) for name, part in vars(value).items()})
    return new


def _moved_cell(old: CellType, cls: type, cell: CellType) -> CellType:
    if old.cell_contents is cls:
        return cell
    # A decorator has what it wraps in a cell.
    content = _moved(old.cell_contents, cls, cell)
    return old if content is old.cell_contents else CellType(content)
