"""Floor 7: the figures and controls of the notebooks."""
