//go:build binaries

// Package agnhost pins the module of Kubernetes' agnhost, the server and client
// of the conformance suites, in go.mod and go.sum, and owns nothing else. It is
// never compiled.
package agnhost

import _ "k8s.io/kubernetes/test/images/agnhost"
