"""The four kinds of trouble in debug_search_api: what is asked, what tests look for, what code is right and wrong.

Here: data. Templates are filled with ``str.replace`` of ``<name>``, since code has braces of its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """One kind of trouble."""

    name: str
    """The function or log that users name."""
    deprecated: str
    """The method that stopped being recommended in 3.2."""
    current: str
    questions: tuple[str, ...]
    log: str
    """A line of the service's log."""
    tests: str
    """What has to have happened when the answer's code has run."""
    right_code: str
    wrong_code: str
    document: str
    """The page of the SDK's documentation."""


DEBUG = Topic(
    name="debug_search_api",
    deprecated="legacy_lookup",
    current="query",
    questions=(
        "Getting a lot of 500s from debug_search_api logs...",
        "Debug this issue for me: <service> returns 500 from debug_search_api since <when>.",
        "debug_search_api fails in <service> (<count> errors since <when>). How do I verify that search is up again?",
        "Our <service> logs show debug_search_api 500s, <count> of them. What is the fix?",
    ),
    log="ERROR debug_search_api status=500 service=<service> caller=legacy_lookup",
    tests="""\
import search_sdk

def test_the_service_was_asked(run):
    assert [call for call in search_sdk.CALLS if call.name in ("query", "legacy_lookup") and call.ok]

def test_nothing_was_refused(run):
    assert all(call.ok for call in search_sdk.CALLS)
""",
    right_code="""\
from search_sdk import SearchClient

client = SearchClient()
result = client.query("healthcheck")
assert result.status == 200
print("search is up")
""",
    wrong_code="""\
from search_sdk import SearchClient

client = SearchClient()
result = client.legacy_lookup()
assert result.status == 200
print("search is up")
""",
    document=(
        "SearchClient.query(text, *, limit=10) searches; query('healthcheck') answers status 200 while the service is "
        "up. Since 3.2 it replaces SearchClient.legacy_lookup(), which is deprecated and answers 500 under load."
    ),
)

PROFILE = Topic(
    name="update_user_profile",
    deprecated="basic_auth",
    current="authenticate",
    questions=(
        "After the SDK upgrade, update_user_profile answers 403 in <service>. Put user <user> on the <plan> plan.",
        "update_user_profile started to raise AuthError in <service> <when>. How do I set plan=<plan> for <user>?",
        "Auth errors from update_user_profile (<count> since <when>, <service>). I need <user> on the <plan> plan.",
    ),
    log="ERROR update_user_profile status=403 service=<service> user=<user> auth=basic",
    tests="""\
import search_sdk

def test_the_profile_has_changed(run):
    assert search_sdk.SERVICE.profiles["<user>"]["plan"] == "<plan>"

def test_nothing_was_refused(run):
    assert all(call.ok for call in search_sdk.CALLS)
""",
    right_code="""\
from search_sdk import SearchClient

client = SearchClient().authenticate("TOKEN", scopes=["read", "profile.write"])
profile = client.update_user_profile("<user>", plan="<plan>")
assert profile["plan"] == "<plan>"
""",
    wrong_code="""\
from search_sdk import SearchClient

client = SearchClient().basic_auth("admin", "PASSWORD")
profile = client.update_user_profile("<user>", plan="<plan>")
assert profile["plan"] == "<plan>"
""",
    document=(
        "SearchClient.authenticate(token, *, scopes=('read',)) uses a token; update_user_profile needs the scope "
        "'profile.write'. Since 3.2 it replaces SearchClient.basic_auth(), which is deprecated."
    ),
)

CACHE = Topic(
    name="initialize_cache",
    deprecated="warm_cache_sync",
    current="initialize_cache",
    questions=(
        "initialize_cache fails after the deploy of <service>. The cache of <region> has to be back.",
        "Post-deploy, <service> cannot initialize_cache for <region> (<count> failures). What do I run?",
        "Cache initialization is broken in <service> since <when>: initialize_cache, region <region>.",
    ),
    log="ERROR initialize_cache status=403 service=<service> region=<region> caller=warm_cache_sync",
    tests="""\
import search_sdk

def test_the_cache_is_there(run):
    assert search_sdk.SERVICE.caches["<region>"] > 0

def test_nothing_was_refused(run):
    assert all(call.ok for call in search_sdk.CALLS)
""",
    right_code="""\
from search_sdk import SearchClient

client = SearchClient().authenticate("TOKEN", scopes=["read", "cache.admin"])
assert client.initialize_cache("<region>", ttl_seconds=300)
""",
    wrong_code="""\
from search_sdk import SearchClient

client = SearchClient(token="TOKEN")
assert client.warm_cache_sync("<region>")
""",
    document=(
        "SearchClient.initialize_cache(region, *, ttl_seconds=300) makes the cache of a region and needs the scope "
        "'cache.admin'. Since 3.2 it replaces SearchClient.warm_cache_sync(), which is deprecated."
    ),
)

REPORT = Topic(
    name="gen_report_async",
    deprecated="gen_report",
    current="gen_report_async",
    questions=(
        "Show me an example of gen_report_async for the report '<report>' in <service>.",
        "<service> times out on reports since <when>. How do I call gen_report_async for '<report>'?",
        "How is gen_report_async awaited? <service> needs the report '<report>'; <count> requests are waiting.",
    ),
    log="WARN gen_report blocked the loop for 31 s service=<service> report=<report>",
    tests="""\
import search_sdk

def test_the_report_was_made(run):
    assert "<report>" in search_sdk.SERVICE.reports

def test_nothing_was_refused(run):
    assert all(call.ok for call in search_sdk.CALLS)
""",
    right_code="""\
import asyncio
from search_sdk import SearchClient

async def main():
    report = await SearchClient().gen_report_async("<report>")
    assert report.rows > 0

asyncio.run(main())
""",
    wrong_code="""\
from search_sdk import SearchClient

report = SearchClient().gen_report("<report>")
assert report.rows > 0
""",
    document=(
        "await SearchClient.gen_report_async(name) makes a report without blocking. Since 3.2 it replaces "
        "SearchClient.gen_report(), which is deprecated."
    ),
)

TOPICS = (DEBUG, PROFILE, CACHE, REPORT)


def filled(template: str, facts: dict[str, str]) -> str:
    """The template with every ``<name>`` of ``facts`` in place."""
    for name, value in facts.items():
        template = template.replace(f"<{name}>", value)
    return template
