package server

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/hauberk-mesh/hauberk/control/ca"
	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
)

// openInterval is between attempts to open the CA: an API server that is away
// is waited for, and readiness says so meanwhile.
const openInterval = 2 * time.Second

// authorityTask opens the CA and keeps it.
type authorityTask struct {
	options ca.Options // set once
	check   *lifecycle.Check
	log     *slog.Logger

	authority atomic.Pointer[ca.Authority]
	ready     chan struct{} // closed by run when the CA is open
}

func (a *authorityTask) run(ctx context.Context) error {
	for a.authority.Load() == nil {
		authority, err := ca.Open(ctx, a.options)
		if err == nil {
			a.authority.Store(authority)
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		a.check.NotReady(err.Error())
		a.log.Error("CA does not open, it is tried again", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(openInterval):
		}
	}
	close(a.ready)
	a.check.Ready()
	return a.authority.Load().Run(ctx)
}

// wait is false when ctx is done before the CA is open.
func (a *authorityTask) wait(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-a.ready:
		return true
	}
}

// get is the CA; nil before wait returned true.
func (a *authorityTask) get() *ca.Authority { return a.authority.Load() }

// roots is the trust domain's roots, DER.
func (a *authorityTask) roots() [][]byte {
	authority := a.get()
	if authority == nil {
		return nil
	}
	var roots [][]byte
	for _, r := range authority.Roots() {
		roots = append(roots, r.Raw)
	}
	return roots
}
