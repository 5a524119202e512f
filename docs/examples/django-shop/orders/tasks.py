"""What becomes of an order."""

from orders.models import Order

try:
    from django.tasks import task
except ImportError:  # Django 5.2
    from django_tasks import task


@task
def carry_out(key: int) -> str:
    """Carry out an order. The model's key is what is handed over, as every time it is read anew."""
    order = Order.objects.get(pk=key)
    order.state = "carried out"
    order.save(update_fields=["state"])
    send_receipt.enqueue(key)
    return str(order)


@task(queue_name="mail")
async def send_receipt(key: int) -> int:
    """Send a receipt: a coroutine, of which many run at once."""
    order = await Order.objects.aget(pk=key)
    order.receipts += 1
    await order.asave(update_fields=["receipts"])
    return order.receipts
