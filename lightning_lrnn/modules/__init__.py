"""LightningModules with recurrent layers, to use and to subclass."""

from lightning_lrnn.modules.base import RecurrentModule
from lightning_lrnn.modules.classifier import SequenceClassifier
from lightning_lrnn.modules.forecaster import Forecaster
from lightning_lrnn.modules.language_model import LanguageModel
from lightning_lrnn.modules.metrics import (
    CRPS,
    BitsPerByte,
    MacroAUROC,
    Perplexity,
    PinballLoss,
)
from lightning_lrnn.modules.sequence_module import SequenceModule
from lightning_lrnn.modules.tagger import SequenceTagger

__all__ = [
    "CRPS",
    "BitsPerByte",
    "Forecaster",
    "LanguageModel",
    "MacroAUROC",
    "Perplexity",
    "PinballLoss",
    "RecurrentModule",
    "SequenceClassifier",
    "SequenceModule",
    "SequenceTagger",
]
