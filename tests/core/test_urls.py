from __future__ import annotations

import string
import traceback
from urllib.parse import quote

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniq import TaskQueue, UnknownScheme
from omniq.errors import ConfigurationError
from omniq.storage.urls import parse_url, redact

SECRET = "hush"
# A secret in pieces, between them everything that a URL reads as an end of the password unless it is escaped.
secrets = st.lists(
    st.sampled_from([SECRET, "@", ":", "/", "?", "#", "&", "=", "%", "%2", "://", "[", "]", " ", "℀"])
).map(lambda pieces: SECRET + "".join(pieces))
schemes = st.sampled_from(["redis", "rediss", "postgresql", "nats", "tls", "mystore", "NATS"])
names = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=40).filter(
    lambda name: name[0] not in "_-"
)


@st.composite
def urls_with_a_password(draw: st.DrawFn) -> str:
    scheme, secret = draw(schemes), draw(secrets)
    user = draw(st.sampled_from(["", "shop", "a.b"]))
    place = draw(
        st.sampled_from(["localhost", "localhost:6379", "[::1]:4222/0", "h/db?namespace=shop", "a:1,b:2/db?x=%40"])
    )
    return f"{scheme}://{user}:{draw(st.sampled_from([secret, quote(secret, safe='')]))}@{place}"


@st.composite
def urls_with_a_token(draw: st.DrawFn) -> str:
    scheme = draw(schemes)
    # What follows a colon would be the password of a user.
    return f"{scheme}://{draw(secrets).replace(':', '')}@localhost:4222"


@st.composite
def urls_with_a_secret_option(draw: st.DrawFn) -> str:
    option = draw(st.sampled_from(["password", "sslpassword", "signing_key", "TOKEN", "client_secret", "credentials"]))
    place = draw(st.sampled_from(["localhost/0", "localhost:6379/0", "/srv/jobs.db", "shop@localhost"]))
    value = draw(st.sampled_from([lambda text: quote(text, safe="@:/?#="), lambda text: quote(text, safe="")]))(
        draw(secrets)
    )
    return f"{draw(schemes)}://{place}?timeout=3&{option}={value}"


def everything_shown(url: str) -> list[str]:
    """Return whatever a user, or a log, sees of a URL."""
    try:
        config = parse_url(url)
    except ConfigurationError as error:
        return [redact(url), "".join(traceback.format_exception(error))]
    with pytest.raises(ValueError, match="unknown option") as caught:
        attrs.evolve(config, options={"bogus": "1"}).check_options(config.options)
    return [redact(url), config.redacted, repr(config), str(config), str(caught.value)]


@given(st.one_of(urls_with_a_password(), urls_with_a_token(), urls_with_a_secret_option()))
def test_a_secret_never_shows(url: str) -> None:
    for text in everything_shown(url):
        assert SECRET not in text
        assert "***" in text


@pytest.mark.parametrize("url", ["redis:/shop:hush@localhost", "shop:hush@localhost", ":hush@localhost"])
def test_what_is_no_url_shows_no_secret_either(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a storage URL") as caught:
        parse_url(url)

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///jobs.db", "sqlite:///jobs.db"),
        (
            "sqlite:////home/me@work/a:b/jobs.db?synchronous=full",
            "sqlite:////home/me@work/a:b/jobs.db?synchronous=full",
        ),
        ("memory://", "memory://"),
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://hush@localhost", "redis://***@localhost"),
        ("postgresql://hush@localhost/db", "postgresql://***@localhost/db"),
        ("redis://shop:hush@localhost:6379/0?namespace=a", "redis://shop:***@localhost:6379/0?namespace=a"),
        ("redis://:hush@localhost", "redis://:***@localhost"),
        ("nats://hush@localhost", "nats://***@localhost"),
        (
            "postgresql://localhost/db?password=hush&sslmode=require",
            "postgresql://localhost/db?password=***&sslmode=require",
        ),
    ],
)
def test_what_is_no_secret_is_shown_as_it_was_written(url: str, shown: str) -> None:
    assert redact(url) == shown


def test_a_url_is_read_into_scheme_location_namespace_and_options() -> None:
    config = parse_url("SQLite:///jobs.db?synchronous=full&namespace=shop&path=a%20b&empty=")

    assert config.scheme == "sqlite"
    assert config.location == "SQLite:///jobs.db"
    assert config.namespace == "shop"
    assert config.options == {"synchronous": "full", "path": "a b", "empty": ""}


def test_the_location_is_as_it_was_written_and_options_are_decoded() -> None:
    config = parse_url("file:///jobs%20of%20today?label=a%20b")
    assert config.location == "file:///jobs%20of%20today"
    assert config.options == {"label": "a b"}


def test_the_location_keeps_the_password_for_the_driver() -> None:
    assert parse_url("redis://shop:hush@localhost/0").location == "redis://shop:hush@localhost/0"


@pytest.mark.parametrize("url", ["jobs.db", "", "redis:localhost", "/srv/jobs.sqlite", 5, None])
def test_what_is_no_url_is_refused_with_an_example(url: object) -> None:
    with pytest.raises(ConfigurationError, match=r"is not a storage URL such as sqlite:///jobs\.db"):
        parse_url(url)  # type: ignore[arg-type]  # the mistake under test


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("sqlite:/srv/jobs.db", "sqlite:////srv/jobs.db"),
        ("sqlite:jobs.db", "sqlite:///jobs.db"),
        ("file:/srv/jobs", "file:///srv/jobs"),
        ("redis:/localhost/0", "redis://localhost/0"),
        ("redis:/shop:hush@localhost", "redis://shop:***@localhost"),
    ],
)
def test_a_url_that_lacks_slashes_is_answered_with_the_one_that_is_meant(url: str, meant: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_url(url)
    assert str(caught.value).endswith(f"; write {meant}")


@pytest.mark.parametrize("path", ["jobs.db", "/srv/jobs.sqlite"])
def test_a_bare_file_name_is_answered_with_the_url_to_write(path: str) -> None:
    with pytest.raises(ConfigurationError, match=f"for a file write sqlite:///{path}$"):
        parse_url(path)


@pytest.mark.parametrize(
    "url",
    [
        "redis://shop:pa?ss@localhost",
        "redis://shop:pa/ss@localhost",
        "redis://[::1",
        # libpq connects to pass@localhost, and says so in its errors
        "postgresql://shop:p@ss@localhost",
    ],
)
def test_a_url_that_a_driver_would_misread_is_refused_with_the_mend(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"write the characters .* as %40"):
        parse_url(url)


@pytest.mark.parametrize(
    "url",
    ["redis://[::1]:6379/0", "postgresql://a:5432,b:5432/db", "nats://a,b:4222", "redis://shop:p%40ss@localhost:6379"],
)
def test_urls_of_ipv6_and_of_several_hosts_are_read(url: str) -> None:
    assert parse_url(url).location == url


@given(names)
def test_a_namespace_of_letters_digits_hyphens_and_underscores_is_taken(namespace: str) -> None:
    assert parse_url("memory://", namespace).namespace == namespace
    assert parse_url(f"memory://?namespace={namespace}").namespace == namespace


@pytest.mark.parametrize("namespace", ["_a", "-a", "a b", "a.b", "a:b", "a*", "ü", "a" * 41, "a/b", "a\n"])
def test_a_namespace_that_some_store_could_not_hold_is_refused(namespace: str) -> None:
    with pytest.raises(ConfigurationError, match=r"namespace .* cannot be used: take 1 to 40 letters"):
        parse_url("memory://", namespace)
    with pytest.raises(ConfigurationError, match=r"namespace .* cannot be used"):
        parse_url(f"memory://?namespace={quote(namespace)}")


def test_the_urls_own_namespace_wins_over_the_parameter_and_that_over_the_default() -> None:
    assert parse_url("memory://?namespace=a", "b").namespace == "a"
    assert parse_url("memory://", "b").namespace == "b"
    assert parse_url("memory://").namespace == "omniq"


@pytest.mark.parametrize("option", ["namespace", "timeout"])
def test_an_option_given_twice_is_refused_and_named(option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"option '{option}' is given twice"):
        parse_url(f"redis://localhost?{option}=1&{option}=2")


def test_an_option_that_the_storage_does_not_know_is_refused_with_those_it_does() -> None:
    config = parse_url("sqlite:///jobs.db?synchronus=full")

    with pytest.raises(ValueError, match=r"unknown option 'synchronus'; sqlite:// knows busy, synchronous, namespace"):
        config.check_options(["synchronous", "busy"])


def test_an_empty_url_is_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="the URL of the store is empty: was the variable set"):
        TaskQueue("")
    monkeypatch.setenv("OMNIQ_URL", "")
    with pytest.raises(ConfigurationError, match="OMNIQ_URL is set, and empty"):
        TaskQueue()
    assert TaskQueue("memory://").url == "memory://", "it is not asked for"
    monkeypatch.delenv("OMNIQ_URL")
    assert TaskQueue().url == "sqlite:///omniq.db"


@pytest.mark.parametrize(
    ("url", "meant"), [("reddis://h", "redis"), ("postgress://h", "postgres"), ("sqlit:///jobs.db", "sqlite")]
)
def test_a_scheme_that_is_nearly_one_is_answered_with_it(url: str, meant: str) -> None:
    with pytest.raises(UnknownScheme, match=rf"no storage opens .*; did you mean {meant}://\?; installed: "):
        TaskQueue(url)
