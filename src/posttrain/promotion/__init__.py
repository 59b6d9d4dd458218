"""promotion: contracts of promotion rules, and the gate that applies one to a report.

Every verdict is exact and recomputable from the records. Not here: measuring (``evaluation``), taking traffic
(``serving``).
"""
