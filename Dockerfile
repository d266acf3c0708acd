# Two images from one base: `api` has no torch and no celery; `worker` has both.
#
#   docker build --target api .        HTTP and migrations
#   docker build --target worker .     dispatch, webhooks and unlearning
#
# A smaller worker without CUDA: --build-arg PIP_EXTRA_INDEX_URL=… (PyTorch's index of CPU wheels).
FROM python:3.11-slim-bookworm AS base

# A real passwd entry: code that looks up its own account must find one. The numbers are fixed for volumes and policies.
RUN groupadd --gid 10001 expunge \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/expunge --create-home --shell /usr/sbin/nologin expunge \
 && install --directory --owner expunge --group expunge /var/lib/expunge/store /var/lib/expunge/log /etc/expunge/recipes /etc/expunge/secrets

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    EXPUNGE_HOME=/var/lib/expunge

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
# No source yet, so this installs only what the project depends on: a change of code keeps this layer.
RUN pip install -c constraints.txt .


FROM base AS api

COPY app app
COPY workers workers
COPY migrations migrations
COPY verifier verifier
RUN pip install --no-deps --force-reinstall .

WORKDIR /var/lib/expunge
USER expunge
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/live', timeout=2)"]
ENTRYPOINT ["expunge"]
CMD ["api", "--host", "0.0.0.0", "--port", "8000"]


FROM base AS worker

ARG TORCH_SPEC=torch==2.13.0
ARG PIP_EXTRA_INDEX_URL=
# Torch first and alone: it is 70 % of the image and changes least.
RUN pip install "${TORCH_SPEC}"
RUN pip install -c constraints.txt ".[worker]"

COPY app app
COPY workers workers
COPY migrations migrations
COPY verifier verifier
RUN pip install --no-deps --force-reinstall .

WORKDIR /var/lib/expunge
USER expunge
# No HEALTHCHECK: a worker's sign of life goes through the broker and is shown by the API at /health/ready.
ENTRYPOINT ["expunge"]
CMD ["worker", "--queues", "unlearn"]
