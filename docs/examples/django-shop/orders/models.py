"""What the shop keeps."""

from django.db import models


class Order(models.Model):
    """An order, and how far it has come."""

    article = models.CharField(max_length=100)
    state = models.CharField(max_length=20, default="new")
    receipts = models.PositiveIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.article} ({self.state})"
