# The service's image: `docker build -t visitor-cases-service .`; docs/container.md says how to run it.

# Any Debian-like image whose python3 can make virtual environments; in production name it with its digest.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
WORKDIR /build
# Two environments: tools has pip and the build backend and stays behind, /opt/venv never has either.
RUN python3 -m venv tools && python3 -m venv --without-pip /opt/venv
COPY requirements/ requirements/
# Wheels only: nothing is compiled here, and no package's build script runs. A registry other than pip's own
# default, with its password, comes as the build secret pip.conf and stays in no layer.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    tools/bin/pip --python /opt/venv/bin/python install --only-binary :all: --require-hashes \
        -r requirements/production.lock
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    tools/bin/pip install --only-binary :all: --require-hashes -r requirements/build.lock
COPY . .
# Some libraries bring their own tests along, which nothing here runs.
RUN tools/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir dist . \
    && tools/bin/pip --python /opt/venv/bin/python install --no-index --no-deps dist/*.whl \
    && find /opt/venv -type d -name tests -prune -exec rm -r {} +

FROM ${PYTHON_IMAGE}
# The base image's own pip goes too: nothing here installs anything. The name is for libpq, which looks one up.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/ensurepip \
    && useradd --uid 10001 --user-group --no-log-init --home-dir /nonexistent --no-create-home \
        --shell /usr/sbin/nologin cases
COPY --from=builder /opt/venv /opt/venv
COPY --chmod=0644 deploy/licenses/ /usr/share/doc/visitor-cases-service/licenses/
WORKDIR /app
COPY --chmod=0644 app.py gunicorn.conf.py ./
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CASES_BIND=0.0.0.0:8000
# By number, so that Kubernetes' runAsNonRoot can tell.
USER 10001:10001
EXPOSE 8000
# /healthz and not /readyz: while the database is away the process is well, and a restart would help nobody.
# It asks the address that the service is told to listen on; 0.0.0.0 and [::] lead to this container itself.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-ISc", "import http.client, os, sys; c = http.client.HTTPConnection(os.environ['CASES_BIND'], timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
CMD ["gunicorn", "app:app"]

# At the end: a new commit then makes no new layers.
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="visitor-cases-service" \
      org.opencontainers.image.description="Serves a company's signed-in customers their own support cases" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
