"""Bodies of tasks as a producer makes them, and as an attacker who can write to the store changes them."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from omniq.storage.body import Header, dump_header, join_body, load_content, make_content, split_body

__all__ = ["body_of", "changed"]


def body_of(payload: bytes = b"[[],{}]", signature: bytes = b"", **header: Any) -> bytes:
    """Return the body of a task.

    :param header: fields of :class:`omniq.storage.body.Header`.
    """
    return join_body(make_content(dump_header(Header(**header)), payload), signature)


def changed(body: bytes, *, payload: bytes | None = None, signature: bytes | None = None, **header: Any) -> bytes:
    """Return a body of which some parts are others; the signature stays as it was unless another one is given."""
    old, content = split_body(body)
    was, arguments = load_content(content)
    new = make_content(dump_header(evolve(was, **header)), arguments if payload is None else payload)
    return join_body(new, old if signature is None else signature)
