"""`lightning-lrnn demo`: what the package does, shown in minutes."""
