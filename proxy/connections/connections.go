// Package connections accepts connections and keeps the list of those that
// live, so that they can be shown, judged again when policy changes, and waited
// for when the sidecar drains.
//
// It does not own what is done with a connection.
package connections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hauberk-mesh/hauberk/proxy/socket"
)

// Live is one connection. Its exported fields are set once.
type Live struct {
	Direction    string
	Peer, Target string
	Since        time.Time

	conn     net.Conn
	protocol atomic.Pointer[string]
	recheck  atomic.Pointer[func() error]
	// rechecked is set before recheck is read, and read after it is set: one of the
	// two sees the other.
	rechecked atomic.Bool
	wake      atomic.Pointer[func()]
	drain     atomic.Pointer[func()]
}

// SetProtocol notes what it speaks.
func (l *Live) SetProtocol(p string) { l.protocol.Store(&p) }

// Protocol is what it speaks, empty while that is not known.
func (l *Live) Protocol() string {
	if p := l.protocol.Load(); p != nil {
		return *p
	}
	return ""
}

// OnRecheck sets what judges the connection again; an error ends it. What was
// rechecked before, by what was set then or by nothing, is judged at once: policy
// may have changed since the caller asked it. The error says that it is ended.
func (l *Live) OnRecheck(f func() error) error {
	l.recheck.Store(&f)
	if !l.rechecked.Load() {
		return nil
	}
	err := f()
	if err != nil {
		socket.Abort(l.conn)
	}
	return err
}

// OnWake sets what ends the connection if it is idle.
func (l *Live) OnWake(f func()) { l.wake.Store(&f) }

// OnDrain sets what tells the other end that the connection will end.
func (l *Live) OnDrain(f func()) { l.drain.Store(&f) }

// Registry is the connections of one sidecar. The zero Registry is empty.
type Registry struct {
	// Watch is told of each connection; nil for none. It is set before the first.
	Watch *socket.Watch

	draining, stopping atomic.Bool

	mu   sync.Mutex
	live map[*Live]struct{} // guarded by mu
}

// Add lists a connection until Remove.
func (r *Registry) Add(direction string, c net.Conn, target string) *Live {
	l := &Live{Direction: direction, Peer: c.RemoteAddr().String(), Target: target, Since: time.Now(), conn: c}
	r.Watch.Add(c)
	r.mu.Lock()
	if r.live == nil {
		r.live = make(map[*Live]struct{})
	}
	r.live[l] = struct{}{}
	r.mu.Unlock()
	return l
}

// Remove ends the listing.
func (r *Registry) Remove(l *Live) {
	r.mu.Lock()
	delete(r.live, l)
	r.mu.Unlock()
}

// All is a copy of the list.
func (r *Registry) All() []*Live {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]*Live, 0, len(r.live))
	for l := range r.live {
		list = append(list, l)
	}
	return list
}

// Len is how many live.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.live)
}

// Recheck judges all again and aborts those that may not go on.
func (r *Registry) Recheck(log *slog.Logger) {
	for _, l := range r.All() {
		l.rechecked.Store(true)
		f := l.recheck.Load()
		if f == nil {
			continue
		}
		if err := (*f)(); err != nil {
			log.Info("live connection ended", "direction", l.Direction, "peer", l.Peer, "target", l.Target, "reason", err.Error())
			socket.Abort(l.conn)
		}
	}
}

// Drain makes connections end after the exchange under way.
func (r *Registry) Drain() {
	if r.draining.Swap(true) {
		return
	}
	for _, l := range r.All() {
		if f := l.drain.Load(); f != nil {
			(*f)()
		}
	}
}

// Draining reports whether Drain was called.
func (r *Registry) Draining() bool { return r.draining.Load() }

// Stop drains and ends what is idle.
func (r *Registry) Stop() {
	r.draining.Store(true)
	r.stopping.Store(true)
	for _, l := range r.All() {
		if f := l.wake.Load(); f != nil {
			(*f)()
		}
	}
}

// Stopping reports whether Stop was called.
func (r *Registry) Stopping() bool { return r.stopping.Load() }

// Serve accepts from l until accept ends, handling each connection in a
// goroutine with a context that ends with live, and returns when all have
// ended. handle owns its connection.
func Serve(accept, live context.Context, l net.Listener, log *slog.Logger, handle func(context.Context, net.Conn)) error {
	stop := context.AfterFunc(accept, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for backoff := time.Duration(0); ; {
		c, err := l.Accept()
		if err != nil {
			if accept.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			// Out of descriptors or memory: wait for some to come back.
			backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
			log.Warn("accept failed", "address", l.Addr().String(), "error", err.Error())
			select {
			case <-time.After(backoff):
				continue
			case <-accept.Done():
				return nil
			}
		}
		backoff = 0
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() {
				if p := recover(); p != nil {
					// One connection's fault must not end the others.
					log.Error("connection handler failed", "error", fmt.Sprint(p))
					socket.Abort(c)
				}
			}()
			handle(live, c)
		}()
	}
}
