"""The table of orders."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """The first step."""

    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("article", models.CharField(max_length=100)),
                ("state", models.CharField(default="new", max_length=20)),
                ("receipts", models.PositiveIntegerField(default=0)),
            ],
        ),
    )
