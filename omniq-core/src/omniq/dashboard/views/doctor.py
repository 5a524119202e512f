"""What the store says about its own health."""

from __future__ import annotations

from starlette.responses import Response

from omniq.cli.doctor import diagnose
from omniq.dashboard.visit import Visit
from omniq.storage import Severity

__all__ = ["show"]

FRESH = 60.0
"""Seconds: each look reads all records."""


async def show(visit: Visit) -> Response:
    """Return the page."""
    findings = await visit.dashboard.looks.shared("doctor", FRESH, lambda: diagnose(visit.queue))
    order = (Severity.ERROR, Severity.WARNING, Severity.OK)
    return visit.page(
        "doctor.html", title="Doctor", findings=sorted(findings, key=lambda one: order.index(one.severity))
    )
