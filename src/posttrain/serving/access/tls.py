"""Certificates by file, and taking up new ones while connections go on.

Here: one server context. Not here: getting certificates. TLS 1.2 and later, with Python's own choice of ciphers. A
change is tried on a context of its own first, so a broken file never replaces a good one.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

from posttrain.core.errors import ConfigError


class _Seen(NamedTuple):
    certificate: tuple[int, int, int]
    key: tuple[int, int, int]


class TlsFiles:
    """A certificate chain and its private key, both PEM."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self._seen = self._look()
        self.context = self._make()
        """For ``create_server(ssl=...)``; stays the same object."""

    def reload(self) -> bool:
        """Take up the files if they changed; returns whether they did. Raises ConfigError and keeps the old ones.

        Connections that are open stay as they are; new ones get the new certificate.
        """
        seen = self._look()
        if seen == self._seen:
            return False
        self._make()
        self.context.load_cert_chain(self._certificate, self._key, password=_no_password)
        self._seen = seen
        return True

    def _look(self) -> _Seen:
        states = []
        for what, path in (("certificate", self._certificate), ("key", self._key)):
            try:
                state = path.stat()
                with path.open("rb"):
                    pass
            except OSError as error:
                raise ConfigError(
                    f"tls: cannot read the {what} {path}: {error.strerror}", hint=f"change `tls.{what}`"
                ) from error
            states.append((state.st_ino, state.st_mtime_ns, state.st_size))
        return _Seen(*states)

    def _make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except ssl.SSLError as error:
            raise ConfigError(
                f"tls: {self._reason(error)}", hint="change `tls.certificate` or `tls.key`"
            ) from error
        except ValueError as error:
            raise ConfigError(
                f"tls: the key {self._key} has a password",
                hint="write it without one, readable by this user only",
            ) from error
        return context

    def _reason(self, error: ssl.SSLError) -> str:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"the key {self._key} is not that of the certificate {self._certificate}"
        for what, path, mark in (
            ("certificate", self._certificate, b"-----BEGIN CERTIFICATE-----"),
            ("private key", self._key, b"PRIVATE KEY-----"),
        ):
            if mark not in path.read_bytes():
                return f"{path} holds no PEM {what}"
        return f"{self._certificate} and {self._key} cannot be used: {error.reason or 'broken PEM'}"


def _no_password() -> str:
    # Without this OpenSSL asks on the terminal and the server waits for ever.
    raise ValueError("a password is needed")
