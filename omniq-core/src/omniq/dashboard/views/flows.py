"""The latest flows, one flow as a picture, and cancelling and retrying them."""

from __future__ import annotations

from markupsafe import Markup
from starlette.responses import Response

from omniq.cli.flows import LOOKED_AT, latest_flows, state_of
from omniq.cli.wording import plural
from omniq.dashboard.access import Permission
from omniq.dashboard.flow_picture import picture_of
from omniq.dashboard.visit import Visit
from omniq.errors import FlowNotFound
from omniq.flow import Flow
from omniq.storage import TaskQuery
from omniq.storage.flows import no_flows
from omniq.task import StoredTask

__all__ = ["cancel", "picture", "retry", "show", "show_one"]

AT_A_TIME = 1000
SHOWN = 50
FRESH = 3.0


async def show(visit: Visit) -> Response:
    """Return the page of the latest flows."""
    looks = visit.dashboard.looks
    storage = await visit.storage()
    holds = storage.limits.flows
    flows = await looks.shared("flows", FRESH, lambda: latest_flows(storage, SHOWN)) if holds else []
    look = await looks.latest()
    return visit.page(
        "flows.html",
        title="Flows",
        now=look.now,
        holds=holds,
        why="" if holds else str(no_flows(storage)),
        rows=[(flow, state_of(flow), sum(flow.counts.values())) for flow in flows],
        looked_at=LOOKED_AT,
        shown=SHOWN,
    )


async def show_one(visit: Visit) -> Response:
    """Return the page of one flow."""
    flow_id = visit.needed("id")
    storage = await visit.storage()
    if not storage.limits.flows:
        raise FlowNotFound(flow_id)
    flow, drawn = await picture(visit, flow_id)
    if flow is None:
        raise FlowNotFound(flow_id)
    look = await visit.dashboard.looks.latest()
    total = sum(flow.counts.values())
    return visit.page(
        "flow.html",
        title="Flow",
        now=look.now,
        flow=flow,
        state=state_of(flow),
        picture=drawn,
        total=total,
        ended=sum(number for state, number in flow.counts.items() if state.is_final),
        drawn=min(total, AT_A_TIME),
        broken=[gate for gate in flow.gates if gate.error] if visit.may(Permission.PAYLOAD) else [],
        tasks=await _tasks(visit, flow_id, 200),
    )


async def picture(visit: Visit, flow_id: str, own: str | None = None) -> tuple[Flow | None, Markup]:
    """Return a flow and its picture.

    :param own: the id of the task that is marked in it.
    """
    storage = await visit.storage()
    (flow,) = await storage.get_flows([flow_id])
    if flow is None:
        return None, Markup("")
    tasks = await visit.dashboard.looks.shared(("flow", flow_id), FRESH, lambda: _tasks(visit, flow_id, AT_A_TIME))
    return flow, picture_of(flow, tasks[::-1], {task.id: visit.to("/task", id=task.id) for task in tasks}, own)


async def _tasks(visit: Visit, flow_id: str, most: int) -> list[StoredTask]:
    storage = await visit.storage()
    return list(await storage.list_tasks(TaskQuery(flow=flow_id, limit=most, bare=True), None))


async def cancel(visit: Visit) -> Response:
    """Cancel a flow."""
    done = "The flow is cancelled: what waits ends."
    return await visit.act(
        "cancel_flow", visit.queue.flows.acancel, "id", done, "It has ended, or was cancelled before."
    )


async def retry(visit: Visit) -> Response:
    """Retry what failed in a flow."""
    flow_id = visit.needed("id")
    number = await visit.queue.flows.aretry(flow_id)
    visit.audit("retry_flow", flow_id, number)
    if not number:
        return visit.done("Nothing of it failed or was cancelled that could run again.")
    return visit.done(f"{plural(number, 'task')} of it to run again, and what waits for them.")
