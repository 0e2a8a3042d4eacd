// Package e2e is the end-to-end tests: each promise of the mesh, seen on a real
// Kubernetes with a real kernel. `make test-e2e` sets the stage and runs them;
// without the stage they skip.
//
// It owns no product code and no way to get a cluster: that is tests/stage's.
// Tests that disturb the whole cluster run alone, one after another; the others
// run together, each in namespaces of its own.
package e2e
