"""What each commit between two kernels bought: the same work on both, and with each change alone."""
