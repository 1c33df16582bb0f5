"""Proxies that the environment names: which one stands before a server, and what is said where it cannot be
used."""

from __future__ import annotations

import asyncio
import os
import time

import httpx2 as httpx
import huggingface_hub
import pytest

from sao.config import OpenAIConfig
from sao.data.contamination_sets import on_disk, parse_source
from sao.engines import Completion, json_http
from sao.engines.json_http import JsonHttp
from sao.engines.proxies import proxy_for
from sao.errors import DataError, EngineError, ModelError
from sao.models.counting import read_shape
from sao.models.locate import find_model
from support.errors import raises
from support.misbehaving_server import Server
from support.odd_servers import answers, asked, opened

pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without proxies."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, "http://a.example", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://a.example", "the proxy http://p:1 (HTTP_PROXY)"),
        ({"http_proxy": "http://p:1"}, "http://a.example", "the proxy http://p:1 (http_proxy)"),
        ({"http_proxy": "p:1"}, "http://a.example", "the proxy http://p:1 (http_proxy)"),
        ({"HTTP_PROXY": "http://p:1"}, "https://a.example", None),
        ({"HTTPS_PROXY": "http://p:1"}, "https://a.example", "the proxy http://p:1 (HTTPS_PROXY)"),
        ({"ALL_PROXY": "http://p:1"}, "https://a.example", "the proxy http://p:1 (ALL_PROXY)"),
        (
            {"ALL_PROXY": "socks://p:1", "HTTPS_PROXY": "http://q:2"},
            "https://a.example",
            "the proxy http://q:2 (HTTPS_PROXY)",
        ),
        ({"http_proxy": "", "HTTP_PROXY": "http://p:1"}, "http://a.example", None),
        (
            {"http_proxy": "http://me:secret@p:1"},
            "http://a.example",
            "the proxy http://p:1 (http_proxy)",
        ),
    ],
)
def test_the_variable_of_the_scheme_comes_before_that_of_all(
    variables: dict[str, str], url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = proxy_for(f"{url}/v1")
    assert (str(found) if found else None) == proxy


@pytest.mark.parametrize(
    ("no_proxy", "url", "avoided"),
    [
        ("*", "http://a.example", True),
        ("a.example", "http://a.example", True),
        ("A.Example", "http://a.EXAMPLE", True),
        ("example", "http://a.example", True),
        (".example", "http://a.example", True),
        ("*.example", "http://a.example", True),
        ("b.example", "http://a.example", False),
        ("ample", "http://a.example", False),
        ("x, a.example ,y", "http://a.example", True),
        ("x a.example", "http://a.example", True),
        ("a.example:8000", "http://a.example:8000", True),
        ("a.example:8000", "http://a.example:8001", False),
        ("a.example:80", "http://a.example", True),
        ("a.example:443", "http://a.example", False),
        ("http://a.example", "http://a.example", True),
        ("10.1.2.3", "http://10.1.2.3:8000", True),
        ("10.0.0.0/8", "http://10.1.2.3:8000", True),
        ("10.0.0.0/8", "http://11.1.2.3:8000", False),
        ("fd00::1", "http://[fd00::1]:8000", True),
        ("[fd00::1]:8000", "http://[fd00::1]:8000", True),
        ("fd00::/16", "http://[fd00::2]", True),
        ("", "http://localhost:8000", True),
        ("", "http://127.0.0.1:8000", True),
        ("", "http://127.8.0.1:8000", True),
        ("", "http://[::1]:8000", True),
        ("", "http://0.0.0.0:8000", True),
        ("", "http://localhost.example:8000", False),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
@pytest.mark.parametrize("proxy", ["http://p:1", "socks://p:1"])
def test_no_proxy_is_obeyed_whatever_the_proxy(
    name: str, no_proxy: str, url: str, avoided: bool, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setenv(name, no_proxy)
    if avoided:
        assert proxy_for(f"{url}/v1") is None
    elif proxy.startswith("socks:"):
        with raises(EngineError, key="proxy"):
            proxy_for(f"{url}/v1")
    else:
        assert proxy_for(f"{url}/v1") is not None


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ("socks://p:1080", r"socks://p:1080 \(ALL_PROXY\).*Write socks5:// instead of socks://.*NO_PROXY"),
        ("socks4://p:1080", r"Write socks5:// instead of socks4://"),
        ("ftp://p:21", r"ftp:// is none of http, https, socks5, socks5h\. To reach"),
        ("http://[::1", r"cannot be used: .*NO_PROXY"),
        ("http://p:port", r"cannot be used: .*NO_PROXY"),
        ("http://me:secret@p:99999x", r"the proxy http://p:99999x \(ALL_PROXY\) cannot be used"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_one_clear_line(
    proxy: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with raises(EngineError, key="proxy", match=message) as caught:
        JsonHttp(OpenAIConfig(base_url="http://sao.invalid/v1"), None)
    assert "secret" not in str(caught.value)


def test_a_socks_proxy_without_its_package_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://p:1080")
    monkeypatch.setitem(__import__("sys").modules, "socksio", None)
    with raises(EngineError, key="proxy", match="pip install socksio.*NO_PROXY"):
        JsonHttp(OpenAIConfig(base_url="http://sao.invalid/v1"), None)
    with Server() as server, opened(server) as engine:  # this machine needs no proxy
        assert all(isinstance(c, Completion) for c in answers(engine, asked("a")).values())


def get_models(url: str) -> None:
    async def play() -> None:
        http = JsonHttp(OpenAIConfig(base_url=url), None)
        try:
            await http.request("GET", f"{url}/models", None)
        finally:
            await http.close()

    asyncio.run(play())


def test_a_proxy_that_does_not_let_us_through_ends_the_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that wants a password, by plain HTTP and by CONNECT (for https). The test server refuses CONNECT
    with 404."""
    with Server() as proxy:
        address = proxy.url.removesuffix("/v1")
        monkeypatch.setenv("ALL_PROXY", address.replace("//", "//me:secret@"))
        begun = time.monotonic()
        with raises(EngineError, key="proxy", match="it answers 404") as caught:
            get_models("https://sao.invalid/v1")
        where = f"the proxy {address} (ALL_PROXY)"
        assert where in str(caught.value) and "secret" not in str(caught.value)
        proxy.models = 407
        with raises(EngineError, key="server", match="HTTP 407.*proxy asks for a user"):
            get_models("http://sao.invalid/v1")
        assert time.monotonic() - begun < 10


def test_a_server_behind_a_proxy_is_named_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with Server() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        server = Server()
        monkeypatch.setattr(Server, "url", "http://sao.invalid/v1")
        with opened(server, said.append) as engine:
            assert len(answers(engine, asked("a"))) == 1
    assert any("sao.invalid/v1 through the proxy http://127.0.0.1" in line for line in said)


def test_certificates_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    with raises(EngineError, key="certificates", match="SSL_CERT_FILE"):
        JsonHttp(OpenAIConfig(base_url="https://sao.invalid/v1"), None)


def test_a_certificate_that_is_not_trusted_ends_the_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed")

    client = httpx.AsyncClient(transport=httpx.MockTransport(refuse))
    monkeypatch.setattr(json_http, "connections", lambda config, proxy: client)
    with raises(EngineError, key="certificates", match="sao.invalid/v1: .*self-signed.*SSL_CERT_FILE"):
        get_models("https://sao.invalid/v1")


def test_the_hub_behind_a_socks_proxy_without_its_package_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hub's client raises this when it is opened."""

    def fetch(*args: object, **options: object) -> str:
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    with raises(ModelError, key="model", match="SOCKS proxy.*socksio"):
        find_model("org/none")
    with raises(ModelError, key="model", match="SOCKS proxy.*socksio"):
        read_shape("org/none")
    with raises(DataError, key="evaluation set", match="SOCKS proxy.*socksio"):
        on_disk(parse_source("alpaca_eval"))
