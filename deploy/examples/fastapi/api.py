"""A FastAPI application that counts its requests."""
from fastapi import FastAPI
from prometheus_client import Counter

app = FastAPI()

REQUESTS = Counter("example_requests_total", "Requests answered.", ["path"])


@app.get("/")
def index():
    REQUESTS.labels("/").inc()
    return {"hello": "world"}
