"""Turns off Lightning's messages, where a command prints its own."""

from __future__ import annotations

import logging
import warnings

__all__ = ["quiet_lightning"]


def quiet_lightning() -> None:
    """Silences Lightning's messages on devices, workers and plugins, in this process."""
    # Both packages log with the logger of the one that was imported last.
    for package in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(package).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=package)
