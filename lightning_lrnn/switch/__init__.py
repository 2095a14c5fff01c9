"""Layers in the place of a project's torch.nn.LSTM, GRU and RNN."""
