package run

import (
	"io"
	"time"
)

// Env is what every sub-command is given: the cluster, the output and the
// input.
type Env struct {
	Cluster
	Output
	In io.Reader
	// Now replaces the clock; nil means time.Now.
	Now func() time.Time
}

// Time is what the clock says.
func (e *Env) Time() time.Time {
	if e.Now != nil {
		return e.Now()
	}
	return time.Now()
}
