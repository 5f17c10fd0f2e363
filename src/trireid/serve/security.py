"""Who may send what: names of the service, requests of other sites, the token, and the sessions of its pages."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Iterable, Mapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

from trireid.errors import InputError, printable
from trireid.files import UnreadableFileError, read_text
from trireid.serve.problems import Problem

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
SESSION_COOKIE, FORM_COOKIE = "trireid_session", "trireid_form"
SESSION_SECONDS = 12 * 3600
SHORTEST_TOKEN, LONGEST_TOKEN = 16, 4096
OPEN_PATHS = ("/health", "/login", "/static")
"""Addresses that need no token."""
_READING = ("GET", "HEAD", "OPTIONS")
_SAME = ("same-origin", "none")
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Of every answer. With the referrer policy `no-referrer`, browsers would send `Origin: null` with forms."""


def read_token(path: Path) -> str:
    """The token in a file: its text without white space around it.

    Raises:
        InputError: it cannot be read, or its token is too short to be safe.
    """
    advice = f"write a random one of at least {SHORTEST_TOKEN} characters, for example with: openssl rand -hex 32"
    try:
        token = read_text(path, limit=LONGEST_TOKEN).strip()
    except UnicodeDecodeError as error:
        raise InputError(f"--token-file {printable(str(path))} is not text; {advice}") from error
    except (UnreadableFileError, OSError) as error:
        raise InputError(f"--token-file {printable(str(path))}: {error.strerror}; {advice}") from error
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            f"the token in {printable(str(path))} has {len(token)} characters, or some that a header cannot hold; "
            f"{advice}"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, token: str | None) -> None:
    """Refuse an address that others reach, unless there is a token.

    Raises:
        InputError: in one line, which also says how to put TLS before it.
    """
    if token is None and not is_loopback(host):
        raise InputError(
            f"--host {printable(host, limit=80)} is reached from other machines: give --token-file FILE, which every "
            "request then needs, and put TLS before it, because a token can be read on the way (for example "
            "--host 127.0.0.1 behind: caddy reverse-proxy --from cameras.example --to 127.0.0.1:8000)"
        )


class Access:
    """The rules of one service.

    Args:
        token: that every request needs; None: none.
        hosts: names by which the service may be called; None: any. A page of another site whose name was pointed at
            this machine (DNS rebinding) is refused by it.
    """

    def __init__(self, token: str | None, hosts: Iterable[str] | None = LOCAL_NAMES) -> None:
        self._token = None if token is None else token.encode()
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._key = secrets.token_bytes(32) if token is None else hashlib.sha256(b"trireid" + token.encode()).digest()

    @property
    def needs_token(self) -> bool:
        """Whether requests need the token or a session."""
        return self._token is not None

    def check(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        """Refuse a request before its body is read.

        Raises:
            Problem: 400, 401 or 403.
        """
        self._check_host(headers.get("host", ""))
        if method not in _READING:
            _check_same_site(headers)
        if self.needs_token and not is_open(path) and not self._is_known(headers):
            raise Problem(
                401,
                "this service needs its token: send the header Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": 'Bearer realm="trireid"'},
            )

    def _check_host(self, host: str) -> None:
        if self._hosts is None:
            return
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if name not in self._hosts:
            raise Problem(
                400,
                f"this service is not called '{printable(name, limit=80)}'; it answers to "
                f"{', '.join(sorted(self._hosts))}, and to names that it is started with (--allow-host)",
            )

    def _is_known(self, headers: Mapping[str, str]) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(given.strip()):
            return True
        return self.is_session(cookie_of(headers, SESSION_COOKIE))

    def is_token(self, given: str) -> bool:
        """Whether a text is the token, in a time that does not depend on it."""
        return self._token is not None and hmac.compare_digest(given.encode("utf-8", "replace"), self._token)

    def new_session(self) -> str:
        """The value of a session cookie, for who has given the token."""
        until = str(int(time.time()) + SESSION_SECONDS)
        return f"{until}.{self._sign('session', until)}"

    def is_session(self, value: str) -> bool:
        """Whether a session cookie is one of this service and still valid."""
        until, _, signature = value.partition(".")
        valid = hmac.compare_digest(signature.encode("utf-8", "replace"), self._sign("session", until).encode())
        return valid and until.isdigit() and int(until) > time.time()

    def form_token(self, seed: str) -> str:
        """What a form of a page must carry: made from the browser's cookie `FORM_COOKIE`, which other sites lack."""
        return self._sign("form", seed)

    def check_form(self, headers: Mapping[str, str], given: str) -> None:
        """Refuse a form that no page of this service has made.

        Raises:
            Problem: 403.
        """
        seed = cookie_of(headers, FORM_COOKIE)
        if not seed or not hmac.compare_digest(given.encode("utf-8", "replace"), self.form_token(seed).encode()):
            raise Problem(403, "this form is not of this service, or older than its start; load the page again")

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose}:{text}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def is_open(path: str) -> bool:
    """Whether an address needs no token."""
    return any(path == each or path.startswith(f"{each}/") for each in OPEN_PATHS)


def new_form_seed() -> str:
    """A value for the cookie `FORM_COOKIE`."""
    return secrets.token_urlsafe(24)


def set_cookie(name: str, value: str, *, secure: bool, seconds: int = SESSION_SECONDS) -> str:
    """A Set-Cookie header that scripts cannot read and that no request from another site carries."""
    secured = "; Secure" if secure else ""
    return f"{name}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secured}"


def cookie_of(headers: Mapping[str, str], name: str) -> str:
    """The value of a cookie of a request; empty where it has none."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _check_same_site(headers: Mapping[str, str]) -> None:
    """Refuse a writing request that a page of another site has made; programs send neither header."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site not in _SAME:
        raise Problem(403, "this request comes from a page of another site, which may not write here")
    if origin is not None:
        try:
            own = urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != ""
        except ValueError:
            own = False
        if not own:
            raise Problem(403, "this request comes from a page of another origin, which may not write here")
