# Two images from one source: `server` (bridge, aggregator, commands) and `edge` (an agent).
#   docker build --target server -t fedmq-server .
#   docker build --target edge   -t fedmq-edge .

FROM python:3.12-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY schemas schemas
COPY lifetimes lifetimes
COPY redis_session redis_session
COPY mqtt_session mqtt_session
COPY edge_agent edge_agent
COPY broker broker
COPY aggregator aggregator
COPY fedmq fedmq
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 10001 fedmq \
 && mkdir -p /var/lib/fedmq && chown fedmq /var/lib/fedmq
WORKDIR /app
COPY --from=wheel /wheels /wheels

FROM base AS server
RUN pip install --no-cache-dir "$(ls /wheels/fedmq-*.whl)[server]"
COPY examples examples
USER fedmq
CMD ["fedmq", "--help"]

FROM base AS edge
RUN pip install --no-cache-dir "$(ls /wheels/fedmq-*.whl)[edge]"
COPY examples examples
USER fedmq
VOLUME /var/lib/fedmq
CMD ["fedmq-agent", "--help"]
