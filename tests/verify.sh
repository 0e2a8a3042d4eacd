#!/usr/bin/env bash
# The house's executable rules: formatting, vet, staticcheck, generated code and module
# files current. Prints what is wrong and how to mend it; exits 1 when anything is.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
step() { printf 'verify: %s\n' "$1" >&2; }
bad() { printf '\n%s\n' "$*" >&2; failed=1; }

step "gofmt"
files=$(git ls-files '*.go' | xargs -r gofmt -l 2>&1)
[ -z "$files" ] || bad "gofmt would change these files (mend: gofmt -w):
$files"

modules=(. tests/cluster tests/collector tests/h2spec)
# tests/collector is left out: a test dependency of the Collector's own modules is
# not published any more, and tidy looks at those. Builds hold it with -mod=readonly.
step "go mod tidy"
for m in . tests/cluster tests/h2spec; do
  out=$(cd "$m" && go mod tidy -diff 2>&1) || bad "$m/go.mod is not tidy (mend: cd $m && go mod tidy):
$out"
done

step "go vet"
for m in "${modules[@]}"; do
  out=$(cd "$m" && go vet ./... 2>&1) || bad "go vet in $m:
$out"
done

step "staticcheck"
out=$(.tools/staticcheck ./... 2>&1) || bad "staticcheck:
$out"

step "generated code"
before=$(git status --porcelain -- api install/crds; git diff -- api install/crds | sha256sum)
if make --no-print-directory generate >/tmp/hauberk-generate.$$ 2>&1; then
  after=$(git status --porcelain -- api install/crds; git diff -- api install/crds | sha256sum)
  [ "$before" = "$after" ] || bad "generated code was not current (mended now: commit it)"
else
  bad "make generate failed:
$(cat /tmp/hauberk-generate.$$)"
fi
rm -f /tmp/hauberk-generate.$$

exit $failed
