"""Errors of the promotion room; each also belongs to a boundary of ``core.errors``.

ConfigError
└── ContractError     a contract that cannot be read; the message begins with file:line:column
DataError
└── GateError         reports that no gate can be held over: another kind, another suite, no records
"""

from __future__ import annotations

from posttrain.core.errors import ConfigError, DataError


class ContractError(ConfigError):
    """A contract that cannot be read. Its message begins with ``file:line:column``."""


class GateError(DataError):
    """A report that cannot stand where it was put."""
