#!/usr/bin/env bash
# Make one peer's environment: benchmarks/peers/make_environment.sh NAME
#
# In: benchmarks/peers/NAME.txt, the peer's pinned packages. Out: .envs/NAME, a Python 3.11
# environment of its own, so that no peer's dependency reaches patchdeploy's. Done already: no-op.
set -euo pipefail

name="${1:?usage: make_environment.sh NAME, where benchmarks/peers/NAME.txt exists}"
peers="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$peers/../.." && pwd)"
pins="$peers/$name.txt"
target="$root/.envs/$name"

[[ "$name" =~ ^[a-z0-9_-]+$ && -f "$pins" ]] || {
  echo "no peer '$name'; choose one of: $(cd "$peers" && ls ./*.txt | sed 's|./||; s|\.txt||' | xargs)" >&2
  exit 2
}
if cmp -s "$pins" "$target/pins.txt"; then
  echo "$target is up to date"
  exit 0
fi
python="${PYTHON:-$root/.venv/bin/python}"
uv="$(command -v "$root/.venv/bin/uv" || command -v uv || true)"
if [[ -n "$uv" ]]; then
  "$uv" venv --quiet --clear --python "$python" "$target"
  "$uv" pip install --quiet --python "$target/bin/python" --no-deps -r "$pins"
else
  "$python" -m venv --clear "$target"
  "$target/bin/python" -m pip install --quiet --no-deps -r "$pins"
fi
cp "$pins" "$target/pins.txt"
echo "$target made from $pins"
