"""Suite evaluation: playing the cases of a frozen suite, grading them, and the records that gates read."""
