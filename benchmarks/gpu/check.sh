#!/usr/bin/env bash
# What one GPU can show, in one table: needs a Python with torch, and nothing installed of stepahead.
#
#     benchmarks/gpu/check.sh [--device cuda:0] [--out FILE]      PYTHON=python3.12 to choose another one
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
"$python" -c 'import torch' || { echo "$python has no torch; name one that has: PYTHON=..."; exit 2; }
missing=$("$python" - <<'END'
from importlib.util import find_spec
needed = {"zmq": "pyzmq", "msgpack": "msgpack", "rich": "rich", "safetensors": "safetensors", "numpy": "numpy"}
print(*(package for module, package in needed.items() if find_spec(module) is None))
END
)
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086  # several packages
    "$python" -m pip install --quiet -c constraints.txt $missing || { echo "$python lacks: $missing"; exit 2; }
fi
make --quiet types
PYTHONPATH="build/types:.:${PYTHONPATH:-}" exec "$python" -m benchmarks.gpu.check "$@"
