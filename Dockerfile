# Images of the programs: gateway, nas, server, sim. Built by scripts/build-images.sh, with Docker or without a daemon.
#   docker build --target server -t hgw-server .      (after scripts/build-images.sh --wheels)
# Wheels come by hash from the locks, fetched before the build: nothing is downloaded from a package index in here.
FROM debian:bookworm-slim AS base
RUN apt-get update \
 && apt-get install -y --no-install-recommends openssl python3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 900 --create-home --home-dir /var/lib/hgw hgw
ENV PATH=/opt/hgw/bin:$PATH PYTHONDONTWRITEBYTECODE=1

# The installer has pip; the images that run do not.
FROM base AS installer
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/pip \
 && python3 -m venv --without-pip /opt/hgw
COPY build/wheels /wheels
COPY requirements /requirements
# Bytecode is compiled here, so that a read-only container starts as fast as any.
RUN printf '%s\n' '#!/bin/sh -e' \
    'for lock in "$@"; do' \
    '  /opt/pip/bin/pip --python /opt/hgw/bin/python install --no-index --find-links=/wheels --require-hashes -r "/requirements/$lock.txt"' \
    'done' \
    '/opt/pip/bin/pip --python /opt/hgw/bin/python install --no-index --no-deps /wheels/hgwd-*.whl' > /install \
 && chmod 755 /install

FROM installer AS gateway-installed
RUN /install gateway
FROM installer AS nas-installed
RUN /install nas
FROM installer AS server-installed
RUN /install server
FROM installer AS sim-installed
RUN /install gateway nas server

# hgwd: the daemon without root. Delivered software needs the launcher, which needs a real gateway's rights.
FROM base AS gateway
COPY --from=gateway-installed /opt/hgw /opt/hgw
USER hgw
ENTRYPOINT ["hgwd"]
CMD ["--help"]

# nas-agent: root inside the container, as it reads every file it backs up and restores owners.
FROM base AS nas
COPY --from=nas-installed /opt/hgw /opt/hgw
ENTRYPOINT ["nas-agent"]
CMD ["--help"]

FROM base AS server
COPY --from=server-installed /opt/hgw /opt/hgw
USER hgw
ENTRYPOINT ["deliver"]
CMD ["--help"]

# firmware-sim: the lab makes namespaces, so this one runs privileged.
FROM base AS sim
COPY scripts/debian-packages-lab.txt /tmp/packages
RUN apt-get update \
 && sed -e 's/#.*//' /tmp/packages | xargs apt-get install -y --no-install-recommends acl attr bubblewrap rsync \
 && rm -rf /var/lib/apt/lists/* /tmp/packages
COPY --from=sim-installed /opt/hgw /opt/hgw
ENTRYPOINT ["firmware-sim"]
CMD ["--help"]
