"""Storage URLs: read into a :class:`~omniq.storage.StorageConfig`, and shown without their secrets."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from omniq.errors import ConfigurationError
from omniq.storage import StorageConfig

__all__ = ["parse_url", "redact", "redact_all", "with_slashes"]

_SECRET = re.compile(r"pass|secret|token|key|cred", re.IGNORECASE)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_SLASHES_MISSING = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/?([^/].*)")
# What closes a quotation, a bracket or a sentence around a URL rather than belongs to it.
_AFTER_A_URL = "'\"`)]}>.,;"
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


def redact(url: str) -> str:
    """Return a URL with its password, and every option whose name speaks of a secret, replaced by ``***``.

    So is a user without a password, which may be a token, or a password whose colon was forgotten. Where it is not
    clear where a password ends, because it holds what should have been escaped, all is hidden.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    if not _is_clear(scheme + "://" + rest):
        return scheme + separator + "***"
    place, mark, query = rest.partition("?")
    if not place.startswith("/"):
        user, at, place = place.rpartition("@")
        place = _hide_password(user) + at + place
    return scheme + separator + place + mark + _hide_options(query)


def redact_all(text: str) -> str:
    """Return a text, such as a driver's error, with every URL in it as :func:`redact` shows it."""

    def shown(found: re.Match[str]) -> str:
        url = found[0].rstrip(_AFTER_A_URL)
        return redact(url) + found[0][len(url) :]

    return _URL.sub(shown, text)


def with_slashes(text: str) -> str | None:
    """Return the URL that is meant by one that lacks slashes, such as ``sqlite:/jobs.db``; None if it is none.

    :param text: which may be an application as ``module:attribute``, too: a word after a colon makes no URL.
    """
    found = _SLASHES_MISSING.fullmatch(text)
    if found is None:
        return None
    scheme, rest = found.groups()
    is_absolute = text[len(scheme) + 1] == "/"
    if scheme == "sqlite":
        return f"sqlite:///{'/' if is_absolute else ''}{rest}"
    if is_absolute:
        return f"file:///{rest}" if scheme == "file" else f"{scheme}://{rest}"
    return None


def _is_clear(url: str) -> bool:
    # A driver would take what precedes an unescaped / or ? of a password for the host, and show it in its errors; of
    # several @ libpq takes the first for the end of the password, redis-py the last.
    rest = url.partition("://")[2]
    if rest.startswith("/"):
        return True
    try:
        authority = urlsplit(url).netloc
    except ValueError:  # not shown, as its text may hold the password
        return False
    return rest.rpartition("@")[0] == authority.rpartition("@")[0] and authority.count("@") <= 1


def _hide_password(user: str) -> str:
    name, colon, _ = user.partition(":")
    if colon:
        return f"{name}:***"
    return "***" if name else ""


def _hide_options(query: str) -> str:
    pairs = parse_qsl(query, keep_blank_values=True)
    return urlencode(
        [(name, "***" if _SECRET.search(name) else value) for name, value in pairs], safe="*/:,", quote_via=quote
    )


def parse_url(url: str, namespace: str | None = None) -> StorageConfig:
    """Read a storage URL.

    :param url: such as ``sqlite:///jobs.db?synchronous=full``.
    :param namespace: used unless the URL names one itself; None: ``"omniq"``.
    :raises ConfigurationError: if it is no URL, or the namespace or an option cannot be used.
    """
    if not isinstance(url, str):
        # Not shown: it may be a library's own kind of URL, password and all.
        raise ConfigurationError(
            f"a {type(url).__name__} is not a storage URL such as sqlite:///jobs.db or redis://localhost, which is text"
        )
    shown = redact(url)
    if "://" not in url:
        meant = with_slashes(url)
        hint = f"; for a file write sqlite:///{url}" if url.endswith((".db", ".sqlite")) else ""
        if meant is not None:
            hint = f"; write {redact(meant)}"
        raise ConfigurationError(f"{shown!r} is not a storage URL such as sqlite:///jobs.db or redis://localhost{hint}")
    location, _, query = url.partition("?")
    if not _is_clear(url):
        raise ConfigurationError(
            f"{shown}: cannot be read as scheme://user:password@host:port; write the characters @ : / ? # % "
            "of a user name, password or option as %40 %3A %2F %3F %23 %25"
        )
    scheme = location.partition("://")[0].lower()
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in options:
            raise ConfigurationError(f"{shown}: option {name!r} is given twice")
        options[name] = value
    chosen = options.pop("namespace", None) or namespace or "omniq"
    if not _NAMESPACE.fullmatch(chosen):
        raise ConfigurationError(
            f"namespace {chosen!r} cannot be used: take 1 to 40 letters, digits, hyphens and underscores, "
            "the first a letter or digit"
        )
    return StorageConfig(scheme=scheme, location=location, namespace=chosen, options=options, redacted=shown)
