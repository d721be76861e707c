# SPDX-License-Identifier: GPL-2.0-only
"""Downloads from a server of our own, over TLS as anywhere."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.server
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fake_kernels import bzimage, kernel_tree

from harness.errors import ExitCode, HarnessError, InfrastructureError, SourceError, StoreError
from harness.kernel.download import fetch
from harness.kernel.origin import resolve
from harness.kernel.reference import Download, ImageFile, Tarball, parse
from harness.progress import Silent
from harness.store import Store

CONTENT = bzimage()


class Handler(http.server.BaseHTTPRequestHandler):
    """What the server answers depends on the path alone."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        match self.path.split("/")[1]:
            case "moved":
                return self._redirect(f"/image/{self.path.split('/')[2]}")
            case "downgrade":
                return self._redirect("http://127.0.0.1:1/image")
            case "loop":
                return self._redirect(self.path)
            case "gone":
                return self.send_error(404)
            case "broken":
                return self.send_error(503)
            case "short":
                self._send(CONTENT[:-1000], len(CONTENT))
            case "huge":
                self._send(b"", 1 << 60)
            case _:
                self._send(CONTENT, len(CONTENT))
        return None

    def _send(self, data: bytes, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def _redirect(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def certificate(directory: Path) -> Path:
    """A key and a certificate for 127.0.0.1, signed by itself, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    path = directory / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server whose certificate is trusted here."""
    pem = certificate(tmp_path)
    Handler.asked = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        thread = threading.Thread(target=httpd.serve_forever, args=(0.05,))
        thread.start()
        yield f"https://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def download(url: str, content: bytes = CONTENT) -> Download:
    found = parse(f"{url}#sha256={hashlib.sha256(content).hexdigest()}")
    assert isinstance(found, Download)
    return found


def test_an_image_is_fetched_once(server: str, store: Store) -> None:
    reference = download(f"{server}/image/bzImage")
    found = resolve(reference, store, Silent())
    assert isinstance(found, ImageFile)
    assert found.text == reference.text
    assert found.path.read_bytes() == CONTENT
    assert resolve(reference, store, Silent()) == found
    assert Handler.asked == ["/image/bzImage"]


def test_a_name_says_that_it_is_a_tarball(server: str, store: Store) -> None:
    found = resolve(download(f"{server}/image/linux-6.12.tar.xz?x=1"), store, Silent())
    assert isinstance(found, Tarball)
    assert found.path.name == "linux-6.12.tar.xz"


def test_what_is_no_download_stays_as_it_is(store: Store, tmp_path: Path) -> None:
    reference = parse(str(kernel_tree(tmp_path / "linux")))
    assert resolve(reference, store, Silent()) is reference


def test_a_server_may_lead_elsewhere_but_not_to_http(server: str, store: Store) -> None:
    assert fetch(download(f"{server}/moved/bzImage"), store, Silent()).read_bytes() == CONTENT
    with pytest.raises(SourceError, match="which is not https"):
        fetch(download(f"{server}/downgrade/x"), store, Silent())


@pytest.mark.parametrize(
    ("path", "error", "says"),
    [
        ("gone/x", SourceError, "says 404 .* Check the address"),
        ("broken/x", InfrastructureError, "says 503 .* Try again"),
        ("short/x", InfrastructureError, r"ended after \d+ of \d+ bytes"),
        ("loop/x", InfrastructureError, "cannot be fetched"),
        ("huge/x", StoreError, "GiB are free"),
    ],
)
def test_what_a_server_may_do(
    server: str, store: Store, path: str, error: type[HarnessError], says: str
) -> None:
    with pytest.raises(error, match=says):
        fetch(download(f"{server}/{path}"), store, Silent())
    assert not list(store.root.glob("download/*"))
    assert not list(store.root.glob("download/.*"))


def test_another_file_than_was_promised(server: str, store: Store) -> None:
    reference = download(f"{server}/image/x", b"something else")
    with pytest.raises(SourceError, match="not what its digest promises") as caught:
        fetch(reference, store, Silent())
    assert caught.value.exit_code is ExitCode.UNTESTABLE
    assert hashlib.sha256(CONTENT).hexdigest() in str(caught.value)
    assert not list(store.root.glob("download/*"))


def test_a_certificate_that_nobody_trusts(
    server: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(InfrastructureError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(download(f"{server}/image/x"), store, Silent())
    assert Handler.asked == []


def test_no_server_at_all(store: Store) -> None:
    with pytest.raises(InfrastructureError, match="Check the network"):
        fetch(download("https://127.0.0.1:1/x"), store, Silent())
