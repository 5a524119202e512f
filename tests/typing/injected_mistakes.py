"""What mypy and pyright must refuse of injected parameters, see mistakes.py."""

from __future__ import annotations

from omniq import Depends, TaskQueue
from tests.typing.injected import Connection, connection, number, queue, send, send_by_name, send_plainly


async def arguments_that_are_injected(given: Connection) -> None:
    send.enqueue(7, connection)  # type: ignore[arg-type]  # the factory, which is no connection
    await send.aenqueue(7, db=connection)  # type: ignore[arg-type]  # likewise
    send_plainly.enqueue(7, 4)  # type: ignore[arg-type]  # what comes after an injected one is given by name
    send_by_name.enqueue(7, given)  # type: ignore[call-arg]  # injected ones are given by name, if at all
    send_by_name.call(7, given)  # type: ignore[call-arg]  # likewise
    queue.enqueue(send_by_name, 7, given)  # type: ignore[call-overload]  # likewise
    send_by_name.enqueue()  # type: ignore[call-arg]  # the task's own argument is missing


def factories_of_other_types(db: int = Depends(Connection)) -> None:  # type: ignore[assignment]  # no int
    Depends(number, scope="app")  # type: ignore[call-overload]  # no such scope
    Depends("connection")  # type: ignore[call-overload]  # no function
    TaskQueue("memory://", lifespan=connection)  # type: ignore[arg-type]  # not decorated
