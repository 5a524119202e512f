"""What the admin's entry for the dashboard stands for. It has no table, only permissions."""

from __future__ import annotations

from django.db import models  # type: ignore[import-untyped]  # it brings no types

__all__ = ["Dashboard"]


class Dashboard(models.Model):  # type: ignore[misc]  # Django brings no types
    """The dashboard: who has ``omniq.view_dashboard`` sees it, who has ``omniq.change_dashboard`` may act there."""

    id = models.BigAutoField(primary_key=True)

    class Meta:
        """As Django has it."""

        app_label = "omniq"
        managed = False
        default_permissions = ("view", "change")
        verbose_name = "dashboard"
        verbose_name_plural = "dashboard"
