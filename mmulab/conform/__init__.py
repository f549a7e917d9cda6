"""Comparison with recorded kernels: read a recording, run it in the model, compare event for event."""
