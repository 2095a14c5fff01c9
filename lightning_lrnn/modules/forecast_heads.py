"""What a forecast is made of: quantiles, or the parameters of a distribution."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, Laplace, Normal, StudentT

from lightning_lrnn.core.checks import plain_numbers
from lightning_lrnn.modules.scores import (
    crps_of_laplace,
    crps_of_normal,
    crps_of_quantiles,
    pinball,
)
from lightning_lrnn.modules.student_t import student_t_quantiles

__all__ = [
    "HEADS",
    "ForecastHead",
    "LaplaceHead",
    "NormalHead",
    "QuantileHead",
    "StudentTHead",
    "check_levels",
]

SMALLEST_SCALE = 1e-4
"""Of a distribution, in standard deviations of the target: so that no density is infinite."""


class ForecastHead(nn.Module, ABC):
    """A linear map from features to `size` numbers for each step ahead and target.

    Those of a freshly made head are biased to a standard normal, or what comes closest: the
    distribution of a standardised target of which nothing is known.

    Args:
        hidden_size: features.
        horizon: steps ahead, H.
        num_targets: K.
        levels: of the quantiles that are asked for, rising.

    Attributes:
        size: numbers P that describe one value.
    """

    def __init__(
        self, hidden_size: int, horizon: int, num_targets: int, levels: Sequence[float]
    ) -> None:
        super().__init__()
        self.levels = list(levels)
        start = self.start()
        self.size = len(start)
        self.shape = (horizon, num_targets, self.size)
        self.linear = nn.Linear(hidden_size, math.prod(self.shape))
        with torch.no_grad():
            self.linear.bias.copy_(torch.tensor(start).repeat(horizon * num_targets))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, hidden_size) to the description of a forecast, (B, H, K, P)."""
        raw: Tensor = self.linear(x).unflatten(-1, self.shape)
        return raw.float()

    @abstractmethod
    def start(self) -> list[float]:
        """The description to start from, (P,)."""

    @abstractmethod
    def losses(self, raw: Tensor, target: Tensor) -> Tensor:
        """The losses to minimise, shaped as the target."""

    @abstractmethod
    def quantiles(self, raw: Tensor) -> Tensor:
        """Returns the quantiles of `levels`, (..., Q)."""

    @abstractmethod
    def point(self, raw: Tensor) -> Tensor:
        """Returns the median, (...)."""

    @abstractmethod
    def crps(self, raw: Tensor, target: Tensor) -> Tensor:
        """The continuous ranked probability score, shaped as the target."""


class QuantileHead(ForecastHead):
    """The quantiles themselves; the loss is the mean pinball loss over the levels.

    They cannot cross: the median is free, and from there each is the one before plus, or minus, the
    softplus of what is predicted. The CRPS is that of `crps_of_quantiles`.
    """

    @property
    def middle(self) -> int:
        """The index of the median among the levels."""
        return self.levels.index(0.5)

    def start(self) -> list[float]:
        """Raw outputs whose quantiles are those of a standard normal distribution."""
        z = [NormalDist().inv_cdf(level) for level in self.levels]
        gaps = [_inverse_softplus(high - low) for low, high in pairwise(z)]
        return [*gaps[: self.middle], 0.0, *gaps[self.middle :]]

    def losses(self, raw: Tensor, target: Tensor) -> Tensor:
        """The pinball loss, the mean over the levels."""
        return pinball(self.quantiles(raw), target, raw.new_tensor(self.levels)).mean(-1)

    def quantiles(self, raw: Tensor) -> Tensor:
        """Returns the quantiles in ascending order, (..., Q)."""
        m = self.middle
        middle = raw[..., m : m + 1]
        below = F.softplus(raw[..., :m]).flip(-1).cumsum(-1).flip(-1)
        above = F.softplus(raw[..., m + 1 :]).cumsum(-1)
        return torch.cat([middle - below, middle, middle + above], -1)

    def point(self, raw: Tensor) -> Tensor:
        """Returns the median."""
        return raw[..., self.middle]

    def crps(self, raw: Tensor, target: Tensor) -> Tensor:
        """The CRPS by the trapezoidal rule over the levels."""
        return crps_of_quantiles(self.quantiles(raw), target, raw.new_tensor(self.levels))


class _Symmetric(ForecastHead):
    """A distribution with a location and a scale; the loss is its negative log likelihood."""

    def start(self) -> list[float]:
        """Raw outputs of location 0 and scale 1."""
        return [0.0, _inverse_softplus(1 - SMALLEST_SCALE)]

    def parts(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Returns location and scale, made of the raw outputs."""
        return raw[..., 0], F.softplus(raw[..., 1]) + SMALLEST_SCALE

    @abstractmethod
    def distribution(self, raw: Tensor) -> Distribution:
        """Returns the distribution, in units of the scaled target."""

    def losses(self, raw: Tensor, target: Tensor) -> Tensor:
        """The negative log likelihood, in nats."""
        nats: Tensor = -self.distribution(raw).log_prob(target)
        return nats

    def quantiles(self, raw: Tensor) -> Tensor:
        """By the inverse of the distribution function."""
        location, scale = self.parts(raw)
        z = self.standard_quantiles(raw, raw.new_tensor(self.levels))
        return location[..., None] + scale[..., None] * z

    @abstractmethod
    def standard_quantiles(self, raw: Tensor, levels: Tensor) -> Tensor:
        """Those for location 0 and scale 1, (..., Q) or (Q,)."""

    def point(self, raw: Tensor) -> Tensor:
        """Returns the location, which is median and mean."""
        return self.parts(raw)[0]

    def crps(self, raw: Tensor, target: Tensor) -> Tensor:
        """Scale times that of the standard distribution."""
        location, scale = self.parts(raw)
        return scale * self.standard_crps(raw, (target - location) / scale)

    @abstractmethod
    def standard_crps(self, raw: Tensor, z: Tensor) -> Tensor:
        """Returns the CRPS for location 0 and scale 1."""


class NormalHead(_Symmetric):
    """A normal distribution; CRPS in closed form."""

    def distribution(self, raw: Tensor) -> Distribution:
        """Returns a `torch.distributions.Normal`."""
        return Normal(*self.parts(raw), validate_args=False)

    def standard_quantiles(self, raw: Tensor, levels: Tensor) -> Tensor:
        """Returns the quantiles of the standard normal distribution."""
        z: Tensor = torch.special.ndtri(levels)
        return z

    def standard_crps(self, raw: Tensor, z: Tensor) -> Tensor:
        """See `crps_of_normal`."""
        return crps_of_normal(z)


class LaplaceHead(_Symmetric):
    """A Laplace distribution, for which the absolute error counts; CRPS in closed form."""

    def distribution(self, raw: Tensor) -> Distribution:
        """Returns a `torch.distributions.Laplace`."""
        return Laplace(*self.parts(raw), validate_args=False)

    def standard_quantiles(self, raw: Tensor, levels: Tensor) -> Tensor:
        """Of the standard distribution: its logarithm on both sides."""
        return -torch.sign(levels - 0.5) * torch.log1p(-(2 * levels - 1).abs())

    def standard_crps(self, raw: Tensor, z: Tensor) -> Tensor:
        """See `crps_of_laplace`."""
        return crps_of_laplace(z)


class StudentTHead(_Symmetric):
    """Student's t, for errors with heavy tails; degrees of freedom above 2 are predicted too.

    The CRPS is the mean pinball loss of 99 quantiles, times 2.
    """

    def start(self) -> list[float]:
        """Starts with ten degrees of freedom."""
        return [*super().start(), _inverse_softplus(8.0)]

    def df(self, raw: Tensor) -> Tensor:
        """Degrees of freedom; above 2, where the variance is finite."""
        return 2 + F.softplus(raw[..., 2])

    def distribution(self, raw: Tensor) -> Distribution:
        """Returns a `torch.distributions.StudentT`."""
        return StudentT(self.df(raw), *self.parts(raw), validate_args=False)

    def standard_quantiles(self, raw: Tensor, levels: Tensor) -> Tensor:
        """See `student_t_quantiles`."""
        return student_t_quantiles(self.df(raw), levels)

    def standard_crps(self, raw: Tensor, z: Tensor) -> Tensor:
        """The midpoint rule for twice the integral of the pinball loss over the levels."""
        levels = (torch.arange(99, device=z.device, dtype=z.dtype) + 0.5) / 99
        return 2 * pinball(self.standard_quantiles(raw, levels), z, levels).mean(-1)


HEADS: dict[str, type[ForecastHead]] = {
    "quantiles": QuantileHead,
    "normal": NormalHead,
    "laplace": LaplaceHead,
    "student_t": StudentTHead,
}


def check_levels(values: Any) -> list[float]:
    """Levels of quantiles, as plain numbers.

    Raises:
        ValueError: unless they rise between 0 and 1 and have the median.
    """
    levels = plain_numbers(values)
    rising = all(low < high for low, high in pairwise([0.0, *(levels or ()), 1.0]))
    if levels is None or not (rising and 0.5 in levels):
        raise ValueError(
            f"`quantiles` must rise, lie between 0 and 1 and contain 0.5, which is the point "
            f"forecast, got {values if levels is None else levels}"
        )
    return levels


def _inverse_softplus(y: float) -> float:
    return math.log(math.expm1(y))
