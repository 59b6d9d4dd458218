"""Held-out evaluation: measures on prompts that no stage trained on, paired comparisons, and the report page."""
