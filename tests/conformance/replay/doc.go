// Package replay replays recorded cases of conformance suites in network
// namespaces: the real converter, compiler, renderer and kernel, without a
// cluster. It owns the recordings. `cyclonus -record` of tests/conformance
// writes testdata/cyclonus.jsonl.gz: what the cluster holds at each step of each
// case of cyclonus, and which connections cyclonus expects.
package replay
