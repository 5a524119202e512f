"""The workers that are alive: what they are, and what they run."""

from __future__ import annotations

from starlette.responses import Response

from omniq.dashboard.visit import Visit

__all__ = ["show"]


async def show(visit: Visit) -> Response:
    """Return the page."""
    look = await visit.dashboard.looks.latest()
    return visit.page("workers.html", title="Workers", look=look)
