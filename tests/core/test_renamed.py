"""Former names of attributes of `RecurrentModule` work, and warn with the present one.

Seen to fail: no `take_renamed`; `super()` by the former name that calls the override again; an
override by the present name replaced.
"""

from __future__ import annotations

import pytest

from lightning_lrnn.data import Digits
from lightning_lrnn.modules import RecurrentModule, SequenceTagger


class Base(RecurrentModule):
    fixed_options = {"backend": ("auto", "set it elsewhere")}  # noqa: RUF012

    def segment(self, batch, rank, size):
        return [*batch, rank, size]


def warns(former: str, name: str):
    return pytest.warns(DeprecationWarning, match=rf"\.{former} is \w+\.{name} now")


def test_former_names_are_read():
    with warns("decided", "fixed_options"):
        assert Base.decided is Base.fixed_options
    with warns("decided", "fixed_options"):
        assert SequenceTagger.decided is SequenceTagger.fixed_options
    with warns("stretch", "segment"):
        assert Base().stretch([0], 1, 2) == [0, 1, 2]
    data = Digits()
    data.trained = {"order": []}
    with warns("given", "trained"):
        assert data.given is data.trained


def test_former_names_are_overridden():
    with warns("stretch", "segment"):

        class Former(Base):
            def stretch(self, batch, rank, size):
                return super().stretch(["former", *batch], rank, size)

    with warns("stretch", "segment"):

        class Further(Former):
            def stretch(self, batch, rank, size):
                return super().stretch(["further", *batch], rank, size)

    with warns("decided", "fixed_options"):

        class Options(Base):
            decided = {}  # noqa: RUF012

    with warns("stretch", "segment"):
        assert Former().segment([], 1, 2) == ["former", 1, 2]
    with warns("stretch", "segment"):
        assert Further().segment([], 1, 2) == ["former", "further", 1, 2]
    assert Options.fixed_options == {}


def test_an_override_by_both_names_is_that_of_the_present_one():
    class Both(Base):
        def segment(self, batch, rank, size):
            return super().segment(["now", *batch], rank, size)

        def stretch(self, batch, rank, size):
            raise AssertionError("the former name")

    assert Both().segment([], 1, 2) == ["now", 1, 2]
