"""Markers of role validity by witnesses."""
