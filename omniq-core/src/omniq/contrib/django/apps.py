"""The Django application: it imports the ``tasks`` modules of all others."""

from __future__ import annotations

from django.apps import AppConfig  # type: ignore[import-untyped]  # it brings no types
from django.utils.module_loading import autodiscover_modules  # type: ignore[import-untyped]  # the same

__all__ = ["OmniQConfig"]


class OmniQConfig(AppConfig):  # type: ignore[misc]  # Django brings no types
    """``"omniq.contrib.django"`` in ``INSTALLED_APPS``."""

    name = "omniq.contrib.django"
    label = "omniq"
    verbose_name = "OmniQ"

    def ready(self) -> None:
        """Import the module ``tasks`` of each installed application, so that each process knows all tasks."""
        autodiscover_modules("tasks")
