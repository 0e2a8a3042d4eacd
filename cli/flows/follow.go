package flows

import (
	"context"
	"sync"
	"time"

	"github.com/hauberk-mesh/hauberk/internal/flow"
)

// ended is a stream that is no more.
type ended struct {
	source source
	last   time.Time
	err    error
}

// follow prints what is kept and what comes until ctx ends. Sources that come
// are asked too, and those whose streams break are asked again, from the last
// that they said.
func (g *gatherer) follow(ctx context.Context) error {
	records, ends := make(chan flow.Record), make(chan ended)
	var streams sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer streams.Wait()
	defer cancel()

	live, last := map[source]bool{}, map[source]time.Time{}
	look := func() error {
		sources, err := g.sources(ctx)
		if err != nil {
			return err
		}
		byAddress, err := g.pods(ctx)
		if err != nil {
			return err
		}
		g.mu.Lock()
		g.names = byAddress
		g.mu.Unlock()
		for _, s := range sources {
			if !live[s] {
				live[s] = true
				streams.Go(func() { g.stream(ctx, s, last[s], records, ends) })
			}
		}
		return nil
	}
	if err := look(); err != nil {
		return err
	}
	again, flush := time.NewTicker(refresh), time.NewTicker(gather)
	defer again.Stop()
	defer flush.Stop()
	var batch []flow.Record
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r := <-records:
			batch = append(batch, r)
		case e := <-ends:
			delete(live, e.source)
			last[e.source] = e.last
			if e.err != nil && g.first(e.source.String()+e.err.Error()) {
				g.warn("%s: %v; it is asked again", e.source, e.err)
			}
		case <-again.C:
			if err := look(); err != nil && g.first(err.Error()) {
				g.warn("%v", err)
			}
		case <-flush.C:
			sortByTime(batch)
			if err := g.print(batch); err != nil {
				return err
			}
			batch = nil
		}
	}
}

// stream hands over what a source says after last.
func (g *gatherer) stream(ctx context.Context, s source, last time.Time, records chan<- flow.Record, ends chan<- ended) {
	each := func(r flow.Record) error {
		if !r.Time.After(last) {
			return nil // it was said before the stream broke
		}
		if g.complete(&r); !g.filter.Match(&r) {
			return nil
		}
		select {
		case records <- r:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	newest := last
	err := g.read(ctx, s, true, func(r flow.Record) error {
		if r.Time.After(newest) {
			newest = r.Time
		}
		return each(r)
	})
	select {
	case ends <- ended{s, newest, err}:
	case <-ctx.Done():
	}
}
