#!/usr/bin/env bash
# Brings a fresh Debian 12 machine (Python 3.11, git, make, pip) to where `make demo` and `make test` run.
# usage: setup.sh [LIST ...]   each LIST is a scripts/debian-packages*.txt to install; idempotent, quick when done.
set -euo pipefail
cd "$(dirname "$0")/.."

missing_packages() {
  cat "$@" | sed -e 's/#.*//' -e '/^[[:space:]]*$/d' | awk '{print $1}' | sort -u | while read -r package; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || echo "$package"
  done
}

install_packages() {
  local missing
  missing=$(missing_packages "$@" | tr '\n' ' ')
  [ -n "${missing// /}" ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    echo "setup: as root, install first: apt-get install --no-install-recommends $missing" >&2
    exit 2
  fi
  echo "setup: installing Debian packages: $missing"
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  { apt-get -q update && apt-get -qy install --no-install-recommends $missing; } >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    echo "setup: apt-get could not install: $missing" >&2
    exit 2
  }
  rm -f "$log"
}

find_python() {
  local name
  for name in python3.11 python3; do
    if "$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then echo "$name"; return; fi
  done
  echo "setup: Python 3.11 is needed; on Debian 12: apt-get install python3" >&2
  exit 2
}

make_venv() {
  local python want
  want=$(sha256sum requirements/dev.txt pyproject.toml | sha256sum | cut -c1-16)
  [ "$(cat .venv/.setup-done 2>/dev/null || true)" = "$want" ] && return 0
  python=$(find_python)
  if [ ! -x .venv/bin/python ]; then
    "$python" -c 'import ensurepip' 2>/dev/null || { echo python3-venv >/tmp/.hgw-venv-list.$$; install_packages /tmp/.hgw-venv-list.$$; rm -f /tmp/.hgw-venv-list.$$; }
    "$python" -m venv .venv
  fi
  echo "setup: installing locked Python packages into .venv"
  .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
  PYTHONWARNINGS=ignore .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation \
    --config-settings editable_mode=compat -e .
  echo "$want" >.venv/.setup-done
}

[ $# -gt 0 ] || set -- scripts/debian-packages.txt
install_packages "$@"
make_venv
