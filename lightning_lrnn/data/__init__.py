"""Lightning data modules for sequences."""

from lightning_lrnn.data.byte_text import ByteText, TextError
from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.sequence_data import SequenceData
from lightning_lrnn.data.sequence_table import SequenceTable
from lightning_lrnn.data.sequences import SequenceBatch, SequenceRow, collate
from lightning_lrnn.data.source_tokens import SourceTokens
from lightning_lrnn.data.tasks.adding import Adding
from lightning_lrnn.data.tasks.copying import Copying
from lightning_lrnn.data.tasks.digits import Digits
from lightning_lrnn.data.tasks.long_memory import LongMemory, NextSymbol
from lightning_lrnn.data.tasks.spoken_digits import SpokenDigits
from lightning_lrnn.data.tasks.synthetic import SyntheticData
from lightning_lrnn.data.text.windows import IGNORE, TextBatch, Windows

__all__ = [
    "IGNORE",
    "Adding",
    "ByteText",
    "Copying",
    "DataError",
    "Digits",
    "LongMemory",
    "NextSymbol",
    "SequenceBatch",
    "SequenceData",
    "SequenceRow",
    "SequenceTable",
    "SourceTokens",
    "SpokenDigits",
    "SyntheticData",
    "TextBatch",
    "TextError",
    "Windows",
    "collate",
]
