#!/bin/sh
# Makes .venv from the hash-locked requirements: with uv where it is installed, else with venv and pip,
# else (a Python without ensurepip, such as Debian's) with a uv of its own in .uv.
set -eu
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Undrift needs Python 3.11 or newer; $("$python" --version 2>&1 || echo nothing) was found." >&2
    echo "Name another: make env PYTHON=/path/to/python3.x" >&2
    exit 1
}
export UV_PYTHON_DOWNLOADS=never
for bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt; do
    if [ -s "$bundle" ]; then # the machine's own authorities, as pip uses them
        export UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1
    fi
done

with_uv() {
    "$@" venv --quiet --allow-existing --python "$python" .venv
    "$@" pip sync --quiet --python .venv/bin/python --compile-bytecode --require-hashes requirements.lock
    "$@" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
}

with_pip() {
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
}

if command -v uv >/dev/null 2>&1; then
    with_uv uv
elif "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    with_pip
elif "$python" -c 'import pip' 2>/dev/null; then
    "$python" -m pip install --quiet --disable-pip-version-check --upgrade --target .uv uv
    with_uv env PYTHONPATH=.uv "$python" -m uv
else
    echo "$python has neither venv nor pip; install one of them (Debian: python3-venv), or uv" >&2
    exit 1
fi
.venv/bin/python -m compileall -q domain projections infra services
touch .venv/.ready
