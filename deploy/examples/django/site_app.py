"""A Django site in one file, with django-prometheus."""
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

settings.configure(
    DEBUG=False,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="an example, not a secret",
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django_prometheus"],
    MIDDLEWARE=[
        "django_prometheus.middleware.PrometheusBeforeMiddleware",
        "django_prometheus.middleware.PrometheusAfterMiddleware",
    ],
    # Its exporters on ports of their own are not needed, and would count in the wrong place.
    PROMETHEUS_EXPORT_MIGRATIONS=False,
)


def index(request):
    return HttpResponse("hello\n")


urlpatterns = [path("", index)]
application = get_wsgi_application()
