"""The split of rows into training, validation and test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from lightning_lrnn.core.checks import check_numbers
from lightning_lrnn.data.errors import DataError

__all__ = ["PARTS", "check_fractions", "split"]

PARTS = ("train", "val", "test")


def check_fractions(
    val_fraction: float, test_fraction: float, error: type[DataError] = DataError
) -> None:
    """Raises DataError (or `error`) for fractions that cannot be."""
    check_numbers(0, 1, error, val_fraction=val_fraction, test_fraction=test_fraction)
    if not (0 < val_fraction and 0 < test_fraction and val_fraction + test_fraction < 1):
        raise error(
            "`val_fraction` and `test_fraction` must be positive and leave something to train on, "
            f"got {val_fraction} and {test_fraction}"
        )


def split(
    names: Sequence[str],
    val_fraction: float,
    test_fraction: float,
    seed: int,
    strata: Sequence[int] | None = None,
    what: str = "sequences",
) -> dict[str, list[int]]:
    """Deals names out to "train", "val" and "test", always in the same way.

    They are sorted by the SHA-256 of "seed:name", within each stratum; in that order every
    1 / fraction-th is held out. So every part has its share of every stratum, up to one name, and
    nothing else than names, strata, fractions and the seed matters.

    Args:
        names: all different.
        val_fraction: of the names.
        test_fraction: of the names.
        seed: another one, another split.
        strata: of each name, its class, say; None for one stratum.
        what: names are called in a message.

    Returns:
        Positions in `names`, rising, by part.

    Raises:
        DataError: if a part would be empty.
    """

    def place(i: int) -> tuple[int, bytes]:
        digest = hashlib.sha256(f"{seed}:{names[i]}".encode()).digest()
        return (strata[i] if strata else 0), digest

    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    held_out = val_fraction + test_fraction
    held = 0
    for position, i in enumerate(sorted(range(len(names)), key=place)):
        part = "train"
        if _due(position, held_out):
            part = "val" if _due(held, val_fraction / held_out) else "test"
            held += 1
        parts[part].append(i)
    for part, members in parts.items():
        if not members:
            raise DataError(
                f"{len(names)} {what} leave nothing for {part}: give more of them, or another "
                "`val_fraction` and `test_fraction`"
            )
    return {part: sorted(members) for part, members in parts.items()}


def _due(position: int, fraction: float) -> bool:
    """Whether a share of so much has one more member with the name at this position."""
    return int((position + 1) * fraction + 0.5) > int(position * fraction + 0.5)
