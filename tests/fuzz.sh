#!/usr/bin/env bash
# Runs the main module's fuzzers for the given time each (default 30s): all of
# them, or those under the folders that are named. Inputs that are kept for ever
# are seeds in the tests and files in testdata/fuzz; those that were found
# interesting stay in Go's build cache.
# Usage: tests/fuzz.sh [TIME [FOLDER ...]]; tests/fuzz.sh --list names them.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-30s}
[ $# -gt 0 ] && shift
grep -rlE '^func Fuzz' --include='*_test.go' "${@:-.}" | grep -vE '^(\./)?tests/(cluster|collector|h2spec)/' | sort | while read -r file; do
  dir=./$(dirname "${file#./}")
  grep -oE '^func Fuzz[A-Za-z0-9_]*' "$file" | sed 's/^func //' | while read -r name; do
    if [ "$time" = --list ]; then
      echo "$dir $name"
      continue
    fi
    echo "fuzz $dir $name for $time" >&2
    go test "$dir" -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 1s
  done
done
