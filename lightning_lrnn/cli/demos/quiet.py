"""Lightning without its tips, where a command prints what it does itself."""

from __future__ import annotations

import logging
import warnings

__all__ = ["quiet_lightning"]


def quiet_lightning() -> None:
    """Silences what Lightning tells about devices, workers and plugins, in this process."""
    # Whichever was imported last is where both packages log.
    for package in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(package).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=package)
