"""Django: a backend for its tasks framework, and ``manage.py omniq``.

With Django 5.2 the framework is the package ``django-tasks``; where ``django.tasks`` can be imported, it is that one.
The project names the backend in ``TASKS`` and has ``"omniq.contrib.django"`` among its ``INSTALLED_APPS``.
"""

from __future__ import annotations

from omniq.contrib.django.backend import OmniQBackend

__all__ = ["OmniQBackend"]
