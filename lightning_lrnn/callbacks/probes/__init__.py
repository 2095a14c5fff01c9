"""What callbacks measure layers with."""
