#!/usr/bin/env bash
# Builds the images of the Dockerfile: with Docker where a daemon answers, else with buildah and no daemon at all.
# usage: build-images.sh [--wheels] [TARGET ...]   targets: gateway nas server sim (default: all); --wheels: only fetch
# Without Docker: as root, with the packages of scripts/debian-packages-images.txt. The base is then made by mmdebstrap
# under the name the Dockerfile asks for; it differs from the published slim image in small ways.
set -euo pipefail
cd "$(dirname "$0")/.."

only_wheels=no
if [ "${1:-}" = --wheels ]; then only_wheels=yes; shift; fi
[ $# -gt 0 ] || set -- gateway nas server sim
python=.venv/bin/python
[ -x "$python" ] || { echo "build-images: run \`make setup\` first" >&2; exit 2; }

fetch_wheels() {
  local lock
  rm -rf build/wheels
  mkdir -p build/wheels
  for lock in gateway nas server; do
    "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
      --python-version 3.11 --require-hashes -d build/wheels -r "requirements/$lock.txt"
  done
  "$python" -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w build/wheels .
}

with_docker() {
  local target
  for target in "$@"; do docker build --target "$target" -t "hgw-$target" .; done
}

with_buildah() {
  local store=build/images target container program modules
  local -a buildah=(buildah --root "$PWD/$store/storage" --runroot "$PWD/$store/run" --storage-driver vfs)
  mkdir -p "$store"
  if ! "${buildah[@]}" images -q docker.io/library/debian:bookworm-slim 2>/dev/null | grep -q .; then
    [ -f "$store/base.tar" ] || mmdebstrap --mode=root --variant=apt --components=main \
      --dpkgopt='path-exclude=/usr/share/doc/*' bookworm "$store/base.tar"
    container=$("${buildah[@]}" from scratch)
    "${buildah[@]}" add -q "$container" "$store/base.tar" /
    "${buildah[@]}" config --cmd /bin/bash "$container"
    "${buildah[@]}" commit -q --rm "$container" docker.io/library/debian:bookworm-slim
  fi
  for target in "$@"; do
    "${buildah[@]}" build --isolation chroot --pull-never --layers --target "$target" -t "hgw-$target" .
    container=$("${buildah[@]}" from --pull-never "hgw-$target")
    # What is built must answer and hold all that its program imports.
    case "$target" in
      gateway) program=hgwd modules=hgwd.daemon ;;
      nas) program=nas-agent modules=nas_agent.commands.backup,nas_agent.commands.restore ;;
      server) program=deliver modules=deliver.app ;;
      sim) program=firmware-sim modules=firmware_sim.demo,hgwd.daemon,nas_agent.commands.backup,deliver.app ;;
    esac
    "${buildah[@]}" run --isolation chroot "$container" -- "/opt/hgw/bin/$program" --help >/dev/null
    "${buildah[@]}" run --isolation chroot "$container" -- /opt/hgw/bin/python -c "import $modules"
    "${buildah[@]}" rm "$container" >/dev/null
    echo "build-images: hgw-$target built and answers"
  done
}

fetch_wheels
[ "$only_wheels" = no ] || exit 0
if docker info >/dev/null 2>&1; then
  with_docker "$@"
else
  missing=$(sed -e 's/#.*//' scripts/debian-packages-images.txt | awk 'NF{print $1}' | while read -r package; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || echo "$package"
  done)
  [ -z "$missing" ] || { echo "build-images: no Docker daemon; for buildah install: ${missing//$'\n'/ }" >&2; exit 2; }
  with_buildah "$@"
fi
