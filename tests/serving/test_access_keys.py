"""API keys: made once, recognised afterwards, never shown again; and what a gateway without keys may do."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.cli import main
from posttrain.cli.key import create
from posttrain.core.errors import ConfigError, DataError, PosttrainError, StoreError, UnknownReferenceError
from posttrain.serving.access import SCOPES, Access, Budgets, KeyFile, Principal, Refusal, require_access
from posttrain.serving.access.records import KeyList

_KEY = re.compile(r"ptk_[0-9a-z]{12}_([A-Za-z0-9_-]{43})")


def _bearer(token: str) -> bytes:
    return f"Bearer {token}".encode()


def _code(found: Principal | Refusal) -> str:
    return found.code if isinstance(found, Refusal) else "ok"


def test_a_key_opens_what_it_is_for(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    new = keys.create_key("acme", scopes=["chat"], models=["tiny"])
    assert _KEY.fullmatch(new.token)
    access = Access(keys.path)
    for _ in range(2):  # the second time it is remembered
        assert access.check(_bearer(new.token), "chat", "tiny") == Principal("acme", new.record.id, 0)
        assert _code(access.check(_bearer(new.token), "metrics", None)) == "insufficient_scope"
        assert _code(access.check(_bearer(new.token), "chat", "big")) == "model_not_allowed"
    who = access.check(_bearer(new.token), "chat", None)
    assert isinstance(who, Principal)
    assert access.allows(who, "tiny")
    assert not access.allows(who, "big")


@pytest.mark.parametrize("change", ["last", "first", "id", "scheme", "empty", "none", "long", "nul", "latin"])
def test_anything_else_does_not(tmp_path: Path, change: str) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    token = keys.create_key("acme").token
    other = keys.create_key("other").token
    sent = {
        "last": _bearer(token[:-1] + ("A" if token[-1] != "A" else "B")),
        "first": _bearer(token[:17] + ("A" if token[17] != "A" else "B") + token[18:]),
        "id": _bearer(other[:17] + token[17:]),
        "scheme": f"Basic {token}".encode(),
        "empty": b"",
        "none": None,
        "long": _bearer(token + "A" * 10_000),
        "nul": _bearer(token + "\0"),
        "latin": b"Bearer ptk_\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff_" + b"x" * 43,
    }[change]
    found = Access(keys.path).check(sent, "chat", None)
    assert isinstance(found, Refusal)
    assert found.status == 401
    assert found.code == ("missing_api_key" if change == "none" else "invalid_api_key")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120) | st.binary(max_size=60).map(lambda b: b"Bearer ptk_" + b))
def test_no_header_breaks_it(sent: bytes) -> None:
    assert isinstance(Access(Path("no/such/file.json")).check(sent, "chat", None), Refusal)


def test_expiry_revocation_and_rotation(tmp_path: Path) -> None:
    now = [1000.0]
    keys = KeyFile(tmp_path / "keys.json")
    new = keys.create_key("acme", expires_at=2000.0)
    access = Access(keys.path, clock=lambda: now[0])
    assert _code(access.check(_bearer(new.token), "chat", None)) == "ok"
    now[0] = 2000.0
    assert _code(access.check(_bearer(new.token), "chat", None)) == "expired_api_key"
    now[0] = 1000.0
    rotated = keys.rotate(new.record.id)
    assert _code(access.check(_bearer(new.token), "chat", None)) == "ok"  # until it is told to reload
    access.reload()
    assert _code(access.check(_bearer(new.token), "chat", None)) == "invalid_api_key"
    assert _code(access.check(_bearer(rotated.token), "chat", None)) == "ok"
    keys.revoke(new.record.id)
    access.reload()
    assert _code(access.check(_bearer(rotated.token), "chat", None)) == "revoked_api_key"
    with pytest.raises(ConfigError, match="revoked"):
        keys.rotate(new.record.id)
    with pytest.raises(UnknownReferenceError, match="no key"):
        keys.revoke("nothing")


def test_a_rotated_key_may_stay_good_for_a_while(tmp_path: Path) -> None:
    import time

    now = [time.time()]
    keys = KeyFile(tmp_path / "keys.json")
    old = keys.create_key("acme")
    new = keys.rotate(old.record.id, keep_seconds=60)
    access = Access(keys.path, clock=lambda: now[0])
    assert _code(access.check(_bearer(old.token), "chat", None)) == "ok"
    assert _code(access.check(_bearer(new.token), "chat", None)) == "ok"
    now[0] += 61
    assert (
        _code(access.check(_bearer(old.token), "chat", None)) == "expired_api_key"
    )  # though it was remembered
    assert _code(access.check(_bearer(new.token), "chat", None)) == "ok"
    access.reload()
    assert _code(access.check(_bearer(old.token), "chat", None)) == "invalid_api_key"


def test_the_file_is_private_whole_and_holds_no_secret(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "a" / "keys.json")
    tokens = [keys.create_key(f"t{n}").token for n in range(3)]
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    text = keys.path.read_text()
    for token in tokens:
        assert token[17:] not in text
    assert [key.tenant for key in keys.read()] == ["t0", "t1", "t2"]
    assert len({key.secret.salt for key in keys.read()}) == 3
    assert KeyList.from_json(text).keys == keys.read()


def test_a_file_that_others_may_write_or_that_is_broken_is_refused_and_the_old_keys_stay(
    tmp_path: Path,
) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    token = keys.create_key("acme").token
    access = Access(keys.path)
    keys.path.chmod(0o666)
    with pytest.raises(StoreError, match="others may write") as caught:
        access.reload()
    assert "chmod 600" in (caught.value.hint or "")
    keys.path.chmod(0o600)
    keys.path.write_text('{"kind": "access_keys", "schema": 1, "keys": [{"secret": "' + token + '"}]}')
    with pytest.raises(DataError, match="is no key file") as broken:
        access.reload()
    assert token not in str(broken.value)
    assert _code(access.check(_bearer(token), "chat", None)) == "ok"


def test_many_commands_at_once_lose_no_key(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from posttrain.serving.access.keys import KeyFile\n"
        "for n in range(15): KeyFile(Path(sys.argv[1])).create_key(f'{sys.argv[2]}-{n}')"
    )
    path = tmp_path / "keys.json"
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), str(n)]) for n in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    records = KeyFile(path).read()
    assert len({record.tenant for record in records}) == 45
    assert [record.slot for record in records] == list(range(45))


def test_no_secret_in_what_is_printed_logged_or_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    home = ["--home", str(tmp_path)]
    assert main(["key", "create", "--tenant", "acme", "--requests-per-minute", "5", *home]) == 0
    first = capsys.readouterr()
    token = first.out.strip()
    secret = _KEY.fullmatch(token)
    assert secret is not None
    assert secret[1] not in first.err
    path = tmp_path / "serving" / "default" / "keys.json"
    identifier = token[4:16]
    seen = [path.read_text()]
    for command in (["list"], ["list", "--json"], ["revoke", "nothing"], ["rotate", identifier, "--json"]):
        main(["key", *command, *home])
        out = capsys.readouterr()
        seen += [out.out, out.err]
    new_token = json.loads(seen[-2])["key"]
    main(["key", "revoke", identifier, *home])
    access = Access(path)
    for sent in (token, new_token, token + "x", token[:20]):
        found = access.check(_bearer(sent), "chat", "tiny")
        seen += [repr(found), repr(vars(access))]
    seen += [repr(KeyFile(path).read()), caplog.text, path.read_text()]
    seen[seen.index(next(text for text in seen if new_token in text))] = ""  # where it was shown, once
    for text in seen:
        for shown in (token, new_token):
            assert shown[17:] not in text
            assert shown[17:40] not in text


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path)]
    options = [
        "--scope",
        "chat",
        "--model",
        "tiny",
        "--expires-days",
        "2",
        "--tokens-per-day",
        "1000",
        "--json",
    ]
    assert main(["key", "create", "--tenant", "acme", "--name", "laptop", *options, *home]) == 0
    made = json.loads(capsys.readouterr().out)
    assert "secret" not in made
    assert made["budgets"]["tokens_per_day"] == 1000
    assert main(["key", "list", *home]) == 0
    line = capsys.readouterr().out
    for part in (made["id"], "good", "acme", "laptop", "chat", "tiny", "tokens_per_day=1000"):
        assert part in line
    access = Access(tmp_path / "serving" / "default" / "keys.json")
    assert _code(access.check(_bearer(made["key"]), "chat", "tiny")) == "ok"
    assert main(["key", "revoke", "nothing", *home]) == 2
    scopes = next(parameter for parameter in create.params if parameter.name == "scopes")
    assert tuple(scopes.type.choices) == SCOPES  # type: ignore[attr-defined]


def test_wrong_keys_are_refused_when_made(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    with pytest.raises(ConfigError, match="no scope 'chatt'") as caught:
        keys.create_key("acme", scopes=["chatt"])  # type: ignore[list-item]
    assert "'chat'" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="tenant"):
        keys.create_key("")
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Budgets(requests_per_minute=0)
    assert keys.read() == ()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "/run/gateway.sock"])
def test_open_is_for_loopback(host: str, tmp_path: Path) -> None:
    require_access(host, None)
    require_access(host, tmp_path / "keys.json")
    assert Access(None).check(None, "chat", "any") == Principal("open", "", -1)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "", "localhost.example.com"])
def test_elsewhere_keys_or_a_clear_word_are_needed(host: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for keys in (None, path):
        with pytest.raises(PosttrainError, match="let everybody in") as caught:
            require_access(host, keys)
        assert "access: open" in (caught.value.hint or "")
    require_access(host, path, declared_open=True)
    KeyFile(path).create_key("acme")
    require_access(host, path)
    with pytest.raises(ConfigError, match="access: open, but"):
        require_access(host, path, declared_open=True)


def test_the_golden_key_file_is_read() -> None:
    text = (Path(__file__).parent / "golden" / "access-keys-1.json").read_text()
    keys = KeyList.from_json(text)
    assert keys.to_json() == json.loads(text)
    assert keys.keys[0].budgets.requests_per_minute == 60


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_an_error_and_not_an_open_door(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    keys.create_key("acme")
    keys.path.chmod(0)
    with pytest.raises(StoreError, match="cannot read"):
        Access(keys.path)
