"""Floor 1: host physical memory and the memslots that give it to a guest."""
