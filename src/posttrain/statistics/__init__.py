"""statistics: exact tests and bounds, order statistics, power, sequential tests.

Pure arithmetic on counts and numbers: no records of other rooms, no files. Every function names its source. To add a
test or a bound: a function in the file of its kind, with a reference value in ``tests/statistics``.
"""

from __future__ import annotations

from posttrain.core.lazy import lazy_names

__all__ = [
    "Estimate",
    "Trip",
    "as_fraction",
    "clopper_pearson",
    "clustered_proportion",
    "exact",
    "intervals",
    "log_evidence",
    "lower_bound_reaches",
    "order",
    "paired_clustered_difference",
    "power",
    "rate_trip",
    "sample_ratio_log_evidence",
    "sample_ratio_p_value",
    "sequence_half_width",
    "tango_interval",
    "tango_score",
]

_HOMES = {
    "": ("exact", "intervals", "order", "power"),
    "exact": ("as_fraction", "lower_bound_reaches"),
    "intervals": (
        "Estimate",
        "clopper_pearson",
        "clustered_proportion",
        "paired_clustered_difference",
        "tango_interval",
        "tango_score",
    ),
    "sequential": (
        "Trip",
        "log_evidence",
        "rate_trip",
        "sample_ratio_log_evidence",
        "sample_ratio_p_value",
        "sequence_half_width",
    ),
}


__getattr__ = lazy_names(__name__, _HOMES)
