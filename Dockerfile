# The proxy: `motab serve` and `motab probe`. docs/deployment.md says how to build and run it.
# BASE is any image with Python 3.11 or newer, its venv and pip, and certificates.
ARG BASE=python:3.11.15-slim-trixie@sha256:db3ff2e1800a8581e2c48a27c3995339d47bdf046da21c7627accd3d51053a93

FROM ${BASE} AS build
# serve, or serve-litellm for hosted APIs
ARG PACKAGES=serve
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements/build.lock requirements/serve.lock requirements/serve-litellm.lock requirements/
RUN python -m pip install --require-hashes -r requirements/build.lock
# The packages' folder has no pip of its own: this one installs into it. The locks leave out what a proxy
# does not use, so pip must not ask for it.
RUN python -m venv --without-pip /opt/motab \
    && python -m pip --python /opt/motab/bin/python install --require-hashes --no-deps -r requirements/${PACKAGES}.lock \
    && find /opt/motab/lib -type d -name tests -prune -exec rm -r {} +
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY motab motab
COPY proxy proxy
COPY synth_client synth_client
COPY trainer trainer
COPY trajectory_records trajectory_records
RUN python -m pip wheel --no-build-isolation --no-deps --wheel-dir /wheels . \
    && python -m pip --python /opt/motab/bin/python install --no-deps /wheels/*.whl

FROM ${BASE}
COPY --from=build /opt/motab /opt/motab
# The caches of tokenizers and the like go into the home. Whatever user an engine chooses may write there,
# and where it is a tmpfs, runc gives it this mode.
RUN mkdir -m 1777 /home/motab
ENV HOME=/home/motab PATH=/opt/motab/bin:$PATH
WORKDIR /home/motab
USER 65532:65532
EXPOSE 8800
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 8801, timeout=4); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["motab", "serve", "--config", "/etc/motab/config.yaml", "--host", "0.0.0.0", "--port", "8800", "--health-port", "8801"]
