"""What an input may at most be. Each limit is far above any honest file and stands in its message.

A file's claim is compared with what it holds before memory is taken for it.
"""

from __future__ import annotations

MIB = 1 << 20

TEXT_BYTES = 64 * MIB
"""A file of text: scenario, JSON, design. The largest scenario of the recordings has 60 kB."""
EXPERIMENT_BYTES = 4 * MIB
"""An experiment file; one with a thousand runs written out has 100 kB."""
EXPERIMENT_RUNS = 100_000
"""Runs of an experiment."""
RECORDING_BYTES = 256 * MIB
"""A recording of a kernel or a stepper's recording, as the file lies on the disk."""
TRACE_BYTES = 8192 * MIB
"""A kernel's trace as text; 60 million events. It is read in blocks and kept as columns."""
UNPACKED_BYTES = 1024 * MIB
"""What a compressed file may unpack to, all parts together."""
PIECE_BYTES = 64 * MIB
"""What one piece of a checkpoint may unpack to."""
ARCHIVE_MEMBERS = 100_000
"""Parts of a zip archive."""
BACKING_BYTES = 1 << 30
"""Guest memory of a scenario or recording; all of it is filled at the start and so takes memory."""
FILLED_BYTES = 4 << 30
"""What the fills of a scenario or recording may set, all together."""
JSON_DEPTH = 64
"""Nesting of JSON in a file; recordings need less than ten."""
FOREIGN_SECONDS = 5
"""What one call of a user's own code, a role design's say, may take; they need microseconds."""
QUOTED = 60
"""Characters of the input that a message repeats."""
PATH = 1024
"""Characters of a path that a message names."""
MESSAGE = 4096
"""Characters of a message, which may list all known names."""
