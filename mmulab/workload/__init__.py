"""Workloads: snapshots and streams of real guests, and builders of guests."""
