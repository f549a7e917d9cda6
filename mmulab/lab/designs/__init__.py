"""Role designs compared on the same work."""
