"""Floor 8: the figures and controls of the notebooks."""
