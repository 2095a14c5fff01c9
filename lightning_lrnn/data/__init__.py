"""Lightning data modules for sequences."""

from lightning_lrnn.data.byte_text import ByteText, TextError
from lightning_lrnn.data.windows import IGNORE, TextBatch, Windows

__all__ = ["IGNORE", "ByteText", "TextBatch", "TextError", "Windows"]
