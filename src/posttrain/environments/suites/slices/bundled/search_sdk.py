"""search_sdk 3.2.1: a client of a search service that does not exist.

A stand-in for tests: it keeps its state in memory, answers at once, and writes down what it was asked (``CALLS``).
Names that were deprecated in 3.2 still work, with a DeprecationWarning, as they would in the real thing; that code
which uses them runs is the point of the slice that this file belongs to.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

__version__ = "3.2.1"
DEPRECATED = {
    "legacy_lookup": "query",
    "basic_auth": "authenticate",
    "warm_cache_sync": "initialize_cache",
    "gen_report": "gen_report_async",
}
"""Old name to new name."""


class SearchError(Exception):
    """The service refused."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class AuthError(SearchError):
    """No token, or a token without the scope that the call needs."""


@dataclass(frozen=True)
class Call:
    """One call of the client."""

    name: str
    arguments: dict[str, Any]
    ok: bool


@dataclass(frozen=True)
class QueryResult:
    """What a query found."""

    status: int
    hits: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """A finished report."""

    name: str
    rows: int


@dataclass
class Service:
    """The state of the service."""

    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    caches: dict[str, int] = field(default_factory=dict)
    reports: list[str] = field(default_factory=list)


CALLS: list[Call] = []
SERVICE = Service()


class SearchClient:
    """The client."""

    def __init__(self, endpoint: str = "http://search.internal", *, token: str | None = None) -> None:
        self.endpoint = endpoint
        self._scopes: frozenset[str] = frozenset({"read"}) if token else frozenset()

    def query(self, text: str, *, limit: int = 10) -> QueryResult:
        """Search; ``healthcheck`` asks whether the service is up."""
        if not isinstance(text, str) or not text:
            _note("query", False, text=text)
            raise SearchError(400, "the text is empty")
        _note("query", True, text=text, limit=limit)
        hits = () if text == "healthcheck" else tuple(f"{text}-{number}" for number in range(min(limit, 3)))
        return QueryResult(200, hits)

    def authenticate(self, token: str, *, scopes: tuple[str, ...] | list[str] = ("read",)) -> SearchClient:
        """Use a token with scopes: ``read``, ``profile.write``, ``cache.admin``."""
        unknown = set(scopes) - {"read", "profile.write", "cache.admin"}
        if not token or unknown:
            _note("authenticate", False, scopes=tuple(scopes))
            raise AuthError(401, f"unknown scopes {sorted(unknown)}" if unknown else "no token")
        self._scopes = frozenset(scopes)
        _note("authenticate", True, scopes=tuple(scopes))
        return self

    def update_user_profile(self, user_id: str, **fields: Any) -> dict[str, Any]:
        """Change fields of a profile; needs the scope ``profile.write``."""
        self._require("update_user_profile", "profile.write", user_id=user_id)
        profile = SERVICE.profiles.setdefault(user_id, {})
        profile.update(fields)
        _note("update_user_profile", True, user_id=user_id, **fields)
        return dict(profile)

    def initialize_cache(self, region: str, *, ttl_seconds: int = 300) -> bool:
        """Make the cache of a region; needs the scope ``cache.admin``."""
        self._require("initialize_cache", "cache.admin", region=region)
        if ttl_seconds <= 0:
            _note("initialize_cache", False, region=region, ttl_seconds=ttl_seconds)
            raise SearchError(422, "ttl_seconds has to be above 0")
        SERVICE.caches[region] = ttl_seconds
        _note("initialize_cache", True, region=region, ttl_seconds=ttl_seconds)
        return True

    async def gen_report_async(self, name: str) -> Report:
        """Make a report."""
        SERVICE.reports.append(name)
        _note("gen_report_async", True, name=name)
        return Report(name, 3)

    def legacy_lookup(self, text: str = "healthcheck") -> QueryResult:
        """Deprecated in 3.2: use ``query``."""
        _deprecated("legacy_lookup")
        _note("legacy_lookup", True, text=text)
        return QueryResult(200, ())

    def basic_auth(self, user: str, password: str) -> SearchClient:
        """Deprecated in 3.2: use ``authenticate``."""
        _deprecated("basic_auth")
        _note("basic_auth", bool(user and password), user=user)
        self._scopes = frozenset({"read", "profile.write", "cache.admin"})
        return self

    def warm_cache_sync(self, region: str) -> bool:
        """Deprecated in 3.2: use ``initialize_cache``."""
        _deprecated("warm_cache_sync")
        SERVICE.caches[region] = 60
        _note("warm_cache_sync", True, region=region)
        return True

    def gen_report(self, name: str) -> Report:
        """Deprecated in 3.2: use ``gen_report_async``."""
        _deprecated("gen_report")
        SERVICE.reports.append(name)
        _note("gen_report", True, name=name)
        return Report(name, 3)

    def _require(self, name: str, scope: str, **arguments: Any) -> None:
        if scope not in self._scopes:
            _note(name, False, **arguments)
            raise AuthError(403, f"{name} needs the scope {scope!r}")


def _note(call: str, ok: bool, /, **arguments: Any) -> None:
    CALLS.append(Call(call, arguments, ok))


def _deprecated(name: str) -> None:
    message = f"{name} is deprecated since 3.2, use {DEPRECATED[name]}"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
