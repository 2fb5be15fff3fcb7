#!/usr/bin/env bash
# Every benchmark into one folder; arguments after it go to each (for instance --quick).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?folder for the results}
shift
for name in latency swap size export_time; do
  .venv/bin/python "benchmarks/$name.py" --out "$out" "$@"
done
