package run

import "io"

// Env is what every sub-command is given: the cluster, the output and the
// input.
type Env struct {
	Cluster
	Output
	In io.Reader
}
