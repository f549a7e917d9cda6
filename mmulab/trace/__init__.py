"""Floor 4: recordings of a machine's run, and what can be seen of its state at any event."""
