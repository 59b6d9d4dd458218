"""statistics: exact tests and bounds, order statistics, power, sequential tests.

Pure arithmetic on counts and numbers: no records of other rooms, no files. Every function names its source. To add a
test or a bound: a function in the file of its kind, with a reference value in ``tests/statistics``.
"""
