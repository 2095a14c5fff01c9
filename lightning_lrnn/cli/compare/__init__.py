"""`lightning-lrnn compare`: configs trained side by side."""
