"""The cases that are hard to run on real machines: scenarios, their judge, the table."""
