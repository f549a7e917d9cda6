"""Floor 0: what the processor manuals define, as data and one walk."""
