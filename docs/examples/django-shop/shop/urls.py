"""The addresses of the project."""

from django.contrib import admin
from django.urls import path
from orders.views import order, orders

urlpatterns = [
    path("admin/", admin.site.urls),
    path("orders/", orders),
    path("orders/<int:key>/", order),
]
