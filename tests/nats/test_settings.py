"""What a storage URL says, and what it may not say."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniq.storage.urls import parse_url
from omniq_nats.names import Names, token, untoken
from omniq_nats.settings import Settings, read_settings


def settings(url: str) -> Settings:
    return read_settings(parse_url(url))


def test_hosts_have_the_usual_port_unless_they_name_one() -> None:
    assert settings("nats://localhost").servers == ("nats://localhost:4222",)
    assert settings("nats://a:1,b,[::1]:7").servers == ("nats://a:1", "nats://b:4222", "nats://[::1]:7")
    assert settings("nats://user:pass@[::1],b").servers == ("nats://[::1]:4222", "nats://b:4222")
    assert settings("ws://gateway").servers == ("ws://gateway:80",)
    assert settings("wss://gateway,b:8443").servers == ("wss://gateway:443", "wss://b:8443")


def test_a_url_without_options_leaves_the_stream_as_it_is() -> None:
    found = settings("nats://localhost")
    assert (found.replicas, found.storage, found.timeout, found.api) == (None, None, 5.0, "$JS.API")
    assert found.names.namespace == "omniq"


def test_every_option_is_read() -> None:
    found = settings("nats://h?replicas=3&storage=file&timeout=1.5&domain=leaf&namespace=shop")
    assert (found.replicas, found.storage, found.timeout, found.api) == (3, "file", 1.5, "$JS.leaf.API")
    assert found.names.stream == "OMNIQ_shop"


def test_who_we_are_is_read_and_not_shown() -> None:
    assert settings("nats://me:s%40crt@h").login == {"user": "me", "password": "s@crt"}
    assert settings("nats://t%2Fken@h").login == {"token": "t/ken"}
    found = settings("nats://h?credentials=/etc/user.creds")
    assert found.login == {"user_credentials": "/etc/user.creds"}
    assert settings("nats://h?nkey=/etc/user.nk").login == {"nkeys_seed": "/etc/user.nk"}
    for url in ("nats://me:hidden@h", "nats://hidden@h", "nats://h?credentials=hidden"):
        assert "hidden" not in repr(settings(url)) + settings(url).shown


def test_tls_checks_the_servers_name_and_certificate() -> None:
    for url in ("tls://h", "wss://h", "nats://h?tls_hostname=other"):
        found = settings(url)
        assert found.login["tls"].check_hostname is True
        assert found.encrypted is True
    assert settings("nats://h").encrypted is settings("ws://h").encrypted is False


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nats://", "write nats://host:port"),
        ("nats://a,,b", "write nats://host:port"),
        ("nats://a:port", "write nats://host:port"),
        ("nats://h/path", "write nats://host:port"),
        ("nats://h?replicas=2", "replicas is 1, 3 or 5, not '2'"),
        ("nats://h?storage=tape", "storage is file or memory, not 'tape'"),
        ("nats://h?timeout=soon", "timeout is a number of seconds from 0.1 to 600, not 'soon'"),
        ("nats://h?timeout=nan", "timeout is a number of seconds"),
        ("nats://h?timeout=0", "timeout is a number of seconds"),
        ("nats://h?tls_key=k", "tls_key is of no use without tls_cert"),
        ("nats://h?tls_ca=/does/not/exist", "the TLS files cannot be used"),
        ("ws://h?tls_ca=ca.pem", "ws:// does not encrypt, so that tls_ options are of no use; write wss://"),
        ("wss://h?tls_hostname=other", "tls_hostname is of no use with wss://"),
        ("nats://h?domain=", "domain is the name of a JetStream domain"),
        ("nats://h?domain=a.b", "a domain's name has no blanks, dots, * or >, as 'a.b' has"),
        ("nats://h?replica=3", "unknown option 'replica'; nats:// knows credentials, domain"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        settings(url)


@given(st.text())
def test_any_text_becomes_one_token_and_comes_back(text: str) -> None:
    name = token(text)
    assert re.fullmatch(r"[A-Za-z0-9_=-]+", name)
    assert untoken(name) == text


@given(st.text(), st.text())
def test_different_texts_become_different_tokens(first: str, second: str) -> None:
    assert (token(first) == token(second)) is (first == second)


def test_namespaces_have_no_subject_in_common() -> None:
    first, second = Names("shop"), Names("shop-2")
    assert not [one for one in first.subjects if any(one == other for other in second.subjects)]
    assert first.stream != second.stream
