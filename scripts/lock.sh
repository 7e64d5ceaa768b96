#!/usr/bin/env bash
# Writes requirements/{gateway,nas,server,dev}.txt: exact versions and hashes of every file, no index addresses.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() { # compile NAME EXTRA...
  local name=$1 extras=()
  shift
  for extra in "$@"; do extras+=(--extra "$extra"); done
  .venv/bin/pip-compile -q --strip-extras --allow-unsafe --generate-hashes --no-header --no-annotate \
    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options \
    "${extras[@]}" -o "requirements/$name.txt" pyproject.toml
}

compile gateway gateway
compile nas nas
compile server server
compile dev gateway nas server dev
.venv/bin/pip-compile -q --strip-extras --allow-unsafe --generate-hashes --no-header --no-annotate \
  --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options \
  -o requirements/bench.txt requirements/bench.in
