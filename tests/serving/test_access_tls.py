"""TLS by file: handshakes over a real socket, new certificates while it runs, readable errors."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from pathlib import Path

import pytest

from posttrain.core.errors import ConfigError
from posttrain.serving.access import TlsFiles

x509 = pytest.importorskip("cryptography.x509")


def _write(folder: Path, name: str, *, password: bytes | None = None) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    paths = folder / f"{name}.crt", folder / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    return paths


def _handshake(server: ssl.SSLContext, trusted: Path, version: ssl.TLSVersion | None = None) -> str:
    """The common name that a client of ``server`` sees."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        try:
            with server.wrap_socket(connection, server_side=True) as secure:
                secure.recv(1)
        except (ssl.SSLError, OSError):
            connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    client = ssl.create_default_context(cafile=str(trusted))
    if version is not None:
        client.minimum_version = client.maximum_version = version
    try:
        with (
            socket.create_connection(listener.getsockname(), timeout=10) as plain,
            client.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            certificate = secure.getpeercert()
            secure.send(b"x")
            assert certificate is not None
            return str(certificate["subject"][0][0][1])  # type: ignore[index]
    finally:
        thread.join(10)
        listener.close()


def test_new_files_are_taken_up_by_the_same_context(tmp_path: Path) -> None:
    certificate, key = _write(tmp_path, "one")
    tls = TlsFiles(certificate, key)
    context = tls.context
    assert _handshake(context, certificate) == "one"
    assert not tls.reload()
    new_certificate, new_key = _write(tmp_path, "two")
    new_key.replace(key)
    with pytest.raises(ConfigError, match="is not that of the certificate"):
        tls.reload()
    assert _handshake(context, certificate) == "one"
    new_certificate.replace(certificate)
    assert tls.reload()
    assert tls.context is context
    assert _handshake(context, certificate) == "two"


def test_old_versions_are_refused(tmp_path: Path) -> None:
    certificate, key = _write(tmp_path, "one")
    with pytest.warns(DeprecationWarning), pytest.raises((ssl.SSLError, OSError)):
        _handshake(TlsFiles(certificate, key).context, certificate, ssl.TLSVersion.TLSv1_1)


def test_errors_say_what_is_wrong_and_no_bytes_of_the_key(tmp_path: Path) -> None:
    certificate, key = _write(tmp_path, "one")
    _, other = _write(tmp_path, "two")
    _, locked = _write(tmp_path, "three", password=b"secret")
    text = tmp_path / "text"
    text.write_text("hello")
    for files, message in (
        ((tmp_path / "none", key), "cannot read the certificate"),
        ((certificate, tmp_path / "none"), "cannot read the key"),
        ((certificate, other), "is not that of the certificate"),
        ((certificate, locked), "has a password"),
        ((text, key), "holds no PEM certificate"),
        ((certificate, text), "holds no PEM private key"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            TlsFiles(*files)
        assert key.read_text().splitlines()[1] not in str(caught.value)
