"""The recurrence as an operator of PyTorch: autograd, tracing, vmap."""
