"""Handwritten digits, pixel by pixel or row by row."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from lightning_lrnn.core.checks import check_choice, check_flags
from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.packages import import_package
from lightning_lrnn.data.sequence_data import SequenceData
from lightning_lrnn.data.sequences import SequenceRow, SequenceRows
from lightning_lrnn.data.splits import split

__all__ = ["Digits"]

BRIGHTEST = 16


class Digits(SequenceData):
    """Which digit an 8 x 8 image shows, told from its pixels one after the other.

    The 1,797 images of the UCI set "Optical Recognition of Handwritten Digits" that scikit-learn
    brings (`pip install scikit-learn`), with brightness from 0 to 1, split by class and `seed`.

    Args:
        steps: "pixels" for 64 steps of 1 feature, in reading order, or "rows" for 8 steps of 8.
        permute: put the steps of all images into one other order, which `seed` says: what lay close
            lies apart, so that a longer memory is needed. A trained model keeps its own.

    Raises:
        DataError: for arguments that cannot be. In `setup`: if scikit-learn is not installed.
    """

    def __init__(
        self,
        steps: Literal["pixels", "rows"] = "pixels",
        permute: bool = False,
        batch_size: int = 32,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        seed: int = 0,
        packed: bool = False,
        drop_last: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            packed=packed,
            drop_last=drop_last,
            num_workers=num_workers,
        )
        check_choice(("pixels", "rows"), DataError, steps=steps)
        check_flags(DataError, permute=permute)
        self.steps, self.permute = steps, permute
        self.classes = [str(digit) for digit in range(10)]

    def make_parts(self) -> dict[str, SequenceRows]:
        """Reads the images from the file inside scikit-learn, and splits them."""
        datasets = import_package("sklearn.datasets", "`Digits`", "scikit-learn")
        images, labels = datasets.load_digits(return_X_y=True)
        x = torch.tensor(images / BRIGHTEST, dtype=torch.float32)
        x = x[..., None] if self.steps == "pixels" else x.unflatten(-1, (8, 8))
        if self.permute:
            order = torch.from_numpy(np.random.default_rng(self.seed).permutation(x.shape[1]))
            if self.trained is not None:
                if len(self.trained["order"]) != len(order):
                    raise DataError(
                        f"the model was trained on images of {len(self.trained['order'])} steps, "
                        f"these have {len(order)}: set `steps` to what it was"
                    )
                order = self.trained["order"]
            self.fitted = {"order": order}
            x = x[:, order]
        y = torch.tensor(labels)
        names = [str(i) for i in range(len(y))]
        parts = split(names, self.val_fraction, self.test_fraction, self.seed, y.tolist(), "images")
        return {name: [SequenceRow(x[i], y[i]) for i in part] for name, part in parts.items()}
