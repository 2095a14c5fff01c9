"""Text as a data module reads it: its passages, and the windows that batches are made of."""
