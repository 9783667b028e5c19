#!/usr/bin/env bash
# Write the pins again. Needs uv. Look at the difference before you commit it: these are the versions that the tests prove.
set -euo pipefail
cd "$(dirname "$0")"
lock() { # output, further arguments of uv
  local output=$1
  shift
  uv pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-annotate \
    --custom-compile-command "make pins" ../pyproject.toml --output-file "$output" "$@"
}
lock control.txt
lock dev.txt --extra dev --constraint control.txt

# The training plane: another Python than the server's, so without the server's own dependencies; and without torch and
# what only its CUDA build needs, since that build differs by machine (machine/install.py installs torch by version first).
extra='import tomllib; print(*tomllib.load(open("../pyproject.toml", "rb"))["project"]["optional-dependencies"]["train"], sep="\n")'
python3 -c "$extra" | uv pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-annotate \
  --no-header - | awk 'BEGIN { print "# made by: make pins" } /^[^ ]/ { keep = $0 !~ /^(torch==|triton==|nvidia-|cuda-)/ } keep' >train.txt.new
mv train.txt.new train.txt

# Bottleneck adapters: a Python of their own, since their library needs an older transformers.
uv pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links \
  --no-annotate --no-header bottleneck.in |
  awk 'BEGIN { print "# made by: make pins" } /^[^ ]/ { keep = $0 !~ /^(torch==|triton==|nvidia-|cuda-)/ } keep' >bottleneck.txt.new
mv bottleneck.txt.new bottleneck.txt

# The other estimators of benchmarks/memory.py. unsloth's own dependencies (torch and more) are left out: the file of it
# that is run needs none of them.
universal=(uv pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header)
{
  echo "# made by: make pins"
  "${universal[@]}" estimators.in
  echo "unsloth==2026.10.9" | "${universal[@]}" --no-deps -
} >estimators.txt.new
mv estimators.txt.new estimators.txt
