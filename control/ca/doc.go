// Package ca owns the trust domain's root and what is signed by it: it keeps
// the root in a Secret that all replicas share and the trust bundle in a
// ConfigMap, checks callers' tokens with the API server, and signs SVIDs, the
// control plane's own included.
//
// It does not fetch or renew other processes' SVIDs (internal/identity does)
// and knows nothing of policy. Of the API it needs: get and create of the
// Secret, get, create and update of the ConfigMap, both in its own namespace,
// and create of TokenReviews.
package ca
