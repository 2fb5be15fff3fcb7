#!/usr/bin/env bash
# Every benchmark into one folder; arguments after it go to each (for instance --quick).
# Of patch_bytes.py its --quick form, into out/benchmarks/quick: in full it trains twelve patches over
# the ImageNet backbone, wants that one's weights, and writes docs/patch-bytes.md. Run it by hand.
# Of cascade.py its --quick form for the same reason: in full it trains eight tasks.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?folder for the results}
shift
for name in latency swap size export_time; do
  .venv/bin/python "benchmarks/$name.py" --out "$out" "$@"
done
.venv/bin/python benchmarks/border.py --out "$out"
.venv/bin/python benchmarks/train_throughput.py --out "$out" --results "$out" "$@"
.venv/bin/python benchmarks/patch_bytes.py --quick --cache "$out/cache/patch_bytes"
.venv/bin/python benchmarks/cascade.py --quick --out "$out/quick" --cache "$out/cache/cascade"
