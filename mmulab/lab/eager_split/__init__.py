"""Eager page splitting: what it saves, what it costs, and a real migration beside the model's."""
