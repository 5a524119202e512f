"""Taking orders, and saying how far they are."""

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from orders.models import Order
from orders.tasks import carry_out


@csrf_exempt
@require_POST
def orders(request: HttpRequest) -> JsonResponse:
    """Take an order."""
    with transaction.atomic():
        taken = Order.objects.create(article=request.GET["article"])
        result = carry_out.enqueue(taken.pk)
        if taken.article == "refused":
            transaction.set_rollback(True)  # neither the order nor its task
    return JsonResponse({"order": taken.pk, "task": result.id}, status=202)


def order(request: HttpRequest, key: int) -> JsonResponse:
    """Say how far an order is."""
    found = get_object_or_404(Order, pk=key)
    return JsonResponse({"article": found.article, "state": found.state, "receipts": found.receipts})
