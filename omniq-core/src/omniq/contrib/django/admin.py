"""Imported by Django's admin, if the project has it: registers the dashboard, if its libraries are installed."""

from __future__ import annotations

from django.contrib import admin  # type: ignore[import-untyped]  # it brings no types

from omniq.contrib.django.models import Dashboard

try:
    from omniq.contrib.django.dashboard import DashboardAdmin
except ImportError:  # the admin goes without omniq-core[dashboard]
    pass
else:
    admin.site.register(Dashboard, DashboardAdmin)
