"""Sync policies compared on the same work."""
