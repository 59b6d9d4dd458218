"""Frozen suites: their records, identity, files and differences, scripted policies, and the slices that ship."""
