"""access: who may ask for what, and how much of it.

``records`` keys, budgets and answers; ``keys`` the key file; ``budgets`` counters that all workers share; ``check``
what a worker asks for each request; ``tls`` certificates by file. The admin surface is not in here: it listens on
loopback only (``control``).

    access = Access(home / "serving/default/keys.json", SharedBudgets(folder / "budgets", worker=0, workers=4))
    who = access.check(headers.get(b"authorization"), "chat", "tiny")   # Principal or Refusal
    access.charge(who, tokens)
"""

from __future__ import annotations

from posttrain.serving.access.budgets import SharedBudgets
from posttrain.serving.access.check import Access, require_access
from posttrain.serving.access.keys import KeyFile, NewKey
from posttrain.serving.access.records import SCOPES, Budgets, KeyRecord, Principal, Refusal, Scope
from posttrain.serving.access.tls import TlsFiles

__all__ = [
    "SCOPES",
    "Access",
    "Budgets",
    "KeyFile",
    "KeyRecord",
    "NewKey",
    "Principal",
    "Refusal",
    "Scope",
    "SharedBudgets",
    "TlsFiles",
    "require_access",
]
