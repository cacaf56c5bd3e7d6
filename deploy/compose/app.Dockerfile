# The application of the demo: Flask under gunicorn.
FROM debian:12-slim
RUN apt-get update && apt-get install -y --no-install-recommends gunicorn python3-flask python3-prometheus-client && rm -rf /var/lib/apt/lists/*
COPY testdata/apps/shop.py /app/shop.py
CMD ["gunicorn", "--workers", "4", "--max-requests", "1000", "--bind", "0.0.0.0:8000", "--chdir", "/app", "shop:app"]
