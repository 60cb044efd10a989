# syntax=docker/dockerfile:1
# Three images: `api` (no PyTorch), `worker-cpu`, `worker-gpu`.
#   docker build --target api -t modelpress-api .
#   docker build --target worker-cpu --build-arg TORCH_INDEX=<PyTorch's CPU wheel index> -t modelpress-worker .

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PATH=/opt/venv/bin:$PATH
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin modelpress

FROM base AS source
WORKDIR /source
RUN python -m venv /opt/venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY modelpress modelpress
COPY app app
COPY workers workers
COPY migrations migrations

FROM source AS build-api
RUN pip install --no-cache-dir -c constraints.txt '.[server]'

FROM source AS build-worker-cpu
# PyTorch's CPU wheel index; without it the much larger build with CUDA is installed
ARG TORCH_INDEX=
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} '.[worker]'

FROM source AS build-worker-gpu
# empty for the default CUDA build, which brings its own CUDA libraries and needs only the host's driver
ARG TORCH_INDEX=
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} '.[worker]'

FROM base AS api
COPY --from=build-api /opt/venv /opt/venv
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
CMD ["uvicorn", "--factory", "app.main:create_app", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "20"]

FROM base AS worker
ENV TMPDIR=/tmp
USER 10001
STOPSIGNAL SIGTERM
# a worker listens to nothing: it is healthy while it can reach what it lives from
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["python", "-m", "workers.health"]
CMD ["celery", "-A", "workers.celery_app", "worker", "--pool", "threads", "--loglevel", "INFO"]

FROM worker AS worker-cpu
COPY --from=build-worker-cpu /opt/venv /opt/venv

FROM worker AS worker-gpu
COPY --from=build-worker-gpu /opt/venv /opt/venv
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["celery", "-A", "workers.celery_app", "worker", "--pool", "threads", "--loglevel", "INFO", "-Q", "gpu"]
