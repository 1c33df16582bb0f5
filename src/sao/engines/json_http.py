"""One HTTP request and its JSON answer, or the error that says what to do next.

RefusedError: this request will be refused again. BadAnswerError and FailedError: try again. EngineError: the
run cannot go on (no key, no credit, a wrong address).
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx

from sao.config import OpenAIConfig
from sao.engines.proxies import EnvironmentProxy, proxy_for
from sao.errors import EngineError

CONNECT_SECONDS = 30.0
TOO_MUCH = {408, 429, 503, 504}
"""Statuses by which a server says that it is asked too much at once; 529 and others above 500 are retried all
the same."""
FATAL = {301, 302, 307, 308, 401, 402, 403, 404, 405, 407, 410}
UNKNOWN_ADDRESS = {404, 405, 501}
TRANSIENT = {409, 425}
"""Statuses below 500 that may pass."""
KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 8}
"""The kernel probes a silent connection after 60 s, then every 15 s. After 8 probes without a reply (180 s in
all) it is broken: the server's machine is gone, or the network to it. A machine that is only slow replies."""


class BadAnswerError(Exception):
    """An answer that is not what was asked for, such as broken JSON; asked for again."""


class RefusedError(Exception):
    """The server refuses this one request (HTTP 400, 413, 422): sent again it would be refused again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status, self.message = status, message


class FailedError(Exception):
    """A try that failed for a reason that may pass. `wait` is the server's Retry-After, in seconds;
    `overload` says that the server is asked too much at once; `status` is that of its answer, 0 for none."""

    def __init__(self, reason: str, overload: bool = False, wait: float = 0.0, status: int = 0) -> None:
        super().__init__(reason)
        self.overload, self.wait, self.status = overload, wait, status


class JsonHttp:
    """JSON over HTTP with one server. Raises EngineError where its URL or the key cannot be one."""

    def __init__(self, config: OpenAIConfig, key: str | None) -> None:
        self.config = config
        self.url = config.base_url.rstrip("/")
        try:
            _ = urlsplit(self.url).port  # a port of 99999 is an error here; httpx fails only when it connects
        except ValueError as error:
            raise EngineError(
                f"{self.url}: not a URL ({error}). Set engine.openai.base_url", key="engine.openai.base_url"
            ) from error
        self._key = key = (key or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise EngineError(
                f"the environment variable {config.api_key_env} holds something that cannot be a key",
                key="engine.openai.api_key_env",
            )
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._proxy = proxy_for(self.url)
        self.where = f"{self.url} through {self._proxy}" if self._proxy else self.url
        """The server for a message."""
        self._http = connections(config, self._proxy)

    async def request(
        self, method: str, url: str, body: dict[str, Any] | None, optional: bool = False
    ) -> Any:
        """The JSON of one answer: an object to a POST, anything to a GET. Raises RefusedError,
        BadAnswerError, FailedError or EngineError.

        With `optional` an unknown or forbidden address is a refusal.
        """
        response = await self._response(method, url, body)
        status = response.status_code
        if status == 200:
            answer = _json(response.content)
            if not isinstance(answer, dict):
                if method == "POST":
                    raise BadAnswerError("an answer that is no JSON object")
            elif answer.get("error") and not answer.get("choices"):
                raise BadAnswerError(f"an error under HTTP 200: {self._without_key(str(answer))[:200]}")
            return answer
        message = self._without_key(_error_message(response))[:300]
        if optional and status in UNKNOWN_ADDRESS | FATAL:
            raise RefusedError(status, message)
        if status in FATAL:
            raise EngineError(
                f"{url}: HTTP {status}: {message}. {_advice(response, self.config)}", key="server"
            )
        if status >= 500 or status in TOO_MUCH or status in TRANSIENT:
            wait = retry_after(response)
            raise FailedError(f"HTTP {status}: {message}", status in TOO_MUCH, wait, status)
        raise RefusedError(status, message)

    async def close(self) -> None:
        """End the connections."""
        await self._http.aclose()

    async def _response(self, method: str, url: str, body: dict[str, Any] | None) -> httpx.Response:
        content = None if body is None else json.dumps(body).encode("utf-8", "surrogatepass")
        try:
            async with asyncio.timeout(self.config.timeout):
                return await self._http.request(method, url, content=content, headers=self._headers)
        except (TimeoutError, httpx.TimeoutException) as error:
            reason = f"no answer in engine.openai.timeout = {self.config.timeout:g} s"
            raise FailedError(reason, overload=True) from error
        except httpx.RequestError as error:
            if self._proxy and isinstance(error, httpx.ProxyError) and re.match(r"4\d\d", str(error)):
                raise self._proxy.fault(f"it answers {error}") from error
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise EngineError(
                    f"{self.where}: its certificate is not trusted here ({error}). Name its certificate "
                    "authority in the environment variable SSL_CERT_FILE",
                    key="certificates",
                ) from error
            name, unreachable = type(error).__name__, isinstance(error, httpx.ConnectError)
            raise FailedError(f"{name}: {error}" if str(error) else name, overload=unreachable) from error
        except httpx.InvalidURL as error:
            raise EngineError(
                f"{url}: not a URL ({error}). Set engine.openai.base_url", key="engine.openai.base_url"
            ) from error

    def _without_key(self, text: str) -> str:
        """A server's words without our key, which some repeat; what is shorter than 8 is no secret
        ("EMPTY")."""
        return text.replace(self._key, "…") if len(self._key) >= 8 else text


def connections(config: OpenAIConfig, proxy: EnvironmentProxy | None) -> httpx.AsyncClient:
    """An HTTP client with as many connections as are needed, the silent ones watched by the kernel
    (`KEEP_ALIVE`; not those through a SOCKS proxy). Raises EngineError where the proxy cannot be used."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=config.max_concurrency)
    timeout = httpx.Timeout(config.timeout, connect=CONNECT_SECONDS)
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    options += [
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in KEEP_ALIVE.items()
        if hasattr(socket, name)  # some systems lack some
    ]
    url = proxy.url if proxy else None
    try:
        transport = httpx.AsyncHTTPTransport(limits=limits, socket_options=options, proxy=url)
    except OSError as error:  # SSL_CERT_FILE, SSL_CERT_DIR
        raise EngineError(
            f"the certificates of this machine cannot be read ({error}). See to the environment variables "
            "SSL_CERT_FILE and SSL_CERT_DIR",
            key="certificates",
        ) from error
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        if proxy is None:
            raise
        is_import = isinstance(error, ImportError)
        raise proxy.fault(
            "it needs the package socksio (pip install socksio)" if is_import else str(error)
        ) from error
    return httpx.AsyncClient(timeout=timeout, transport=transport)


def retry_after(response: httpx.Response) -> float:
    """The seconds of a Retry-After header, which holds a number or a date; 0 where there is none."""
    value = response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, IndexError, OverflowError):
            return 0.0
    return max(0.0, seconds) if seconds < float("inf") else 0.0


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        if content.lstrip().startswith((b"data:", b"event:")):
            raise BadAnswerError("a stream of events, though stream is false") from error
        raise BadAnswerError("an answer that is no JSON") from error


def _error_message(response: httpx.Response) -> str:
    """What an error's body says: {"error": {"message": …, "param": …}}, or its words."""
    try:
        error = json.loads(response.content)
        error = error.get("error", error)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
        param = error.get("param") if isinstance(error, dict) else None
        text += f" ({param})" if isinstance(param, str) and param not in text else ""
    except (ValueError, AttributeError, RecursionError):
        text = response.content[:10_000].decode("utf-8", "replace")
    return " ".join(text.split()) or response.reason_phrase


def _advice(response: httpx.Response, config: OpenAIConfig) -> str:
    status = response.status_code
    if "location" in response.headers and status < 400:
        return f"It sends on to {response.headers['location']}. Set engine.openai.base_url"
    if status == 407:
        return "The proxy asks for a user and a password: HTTP_PROXY=http://USER:PASSWORD@HOST:PORT"
    if status in (401, 403):
        return f"Put the key into the environment variable {config.api_key_env}"
    if status == 402:
        return "The account has no credit left; what is finished is kept"
    return "Check engine.openai.base_url (it ends in /v1 for most servers) and engine.openai.model"
