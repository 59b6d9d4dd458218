"""Whole stories, run on this machine: what the parts do together, seen from outside."""
