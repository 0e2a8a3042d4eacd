package upstream

import (
	"context"
	"time"
)

// Times of setting aside.
const (
	asideFirst = time.Second
	asideMost  = 30 * time.Second
	// trialTime is how long one request may try an endpoint that had failed, before
	// another may.
	trialTime = DialTimeout + handshakeTimeout
)

// aside reports whether the endpoint is set aside. Where crowded, because too
// many are, it is for the first time's length only.
func (e *endpoint) aside(now time.Time, crowded bool) bool {
	if crowded {
		return e.soon.Load() > now.UnixNano()
	}
	return e.until.Load() > now.UnixNano()
}

// failed sets the endpoint aside: 1 s at first, doubling up to half a minute.
func (e *endpoint) failed(now time.Time) {
	n := e.fails.Add(1)
	d := min(asideFirst<<min(n-1, 5), asideMost)
	e.until.Store(now.Add(d).UnixNano())
	e.soon.Store(now.Add(asideFirst).UnixNano())
}

// try reports whether the endpoint may be used: one that failed, and whose time
// is over, by one request until that one has found out.
func (e *endpoint) try(now time.Time, crowded bool) bool {
	if e.fails.Load() == 0 {
		return true
	}
	until, soon := e.until.Load(), e.soon.Load()
	if e.aside(now, crowded) {
		return false
	}
	trial := now.Add(trialTime).UnixNano()
	return e.soon.CompareAndSwap(soon, trial) && e.until.CompareAndSwap(until, max(until, trial))
}

func (e *endpoint) worked() {
	if e.fails.Load() != 0 {
		e.fails.Store(0)
		e.until.Store(0)
		e.soon.Store(0)
	}
}

// tell counts a failure that was the endpoint's, not of who gave up.
func (e *endpoint) tell(ctx context.Context, reason string) {
	if e.set.handshakes != nil && ctx.Err() == nil {
		e.set.handshakes.EndpointFailed(reason)
	}
}
