"""Callbacks that write what `Trainer.predict` returns as a table that can be read without code."""
