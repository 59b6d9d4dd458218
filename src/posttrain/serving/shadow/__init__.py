"""Judging what a candidate would have answered beside what the user got."""
