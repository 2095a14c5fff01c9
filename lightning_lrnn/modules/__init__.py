"""LightningModules with recurrent layers, to use and to subclass."""

from lightning_lrnn.modules.base import RecurrentModule
from lightning_lrnn.modules.language_model import LanguageModel
from lightning_lrnn.modules.metrics import BitsPerByte

__all__ = ["BitsPerByte", "LanguageModel", "RecurrentModule"]
