"""The historical bugs, found again: a search that is followed, what it found, and the fix beside it."""
