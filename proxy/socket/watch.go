package socket

import (
	"context"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Times of a Watch. With keep-alive, which asks peers to whom nothing is under
// way, a peer that vanished is noticed within half a minute.
const (
	watchEvery = 5 * time.Second
	silentFor  = 20 * time.Second
)

// How often the kernel must have asked in vain. Both counts begin again with each
// answer.
const (
	vainRetransmits = 4
	vainProbes      = 3
)

// Watch ends connections whose peer does not acknowledge what was sent. It does
// what TCP_USER_TIMEOUT is for, which cannot be used: the kernel takes a peer that
// answers each probe but has no room, because its application does not read at the
// moment, for one that is gone.
//
// A connection is forgotten when it is found closed.
type Watch struct {
	every, limit time.Duration

	mu    sync.Mutex
	conns map[*net.TCPConn]time.Time // guarded by mu; since when something is under way, zero for nothing
}

// NewWatch makes a watch; Run watches.
func NewWatch() *Watch {
	return &Watch{every: watchEvery, limit: silentFor, conns: make(map[*net.TCPConn]time.Time)}
}

// Add watches c until it is closed. A nil Watch watches nothing.
func (w *Watch) Add(c net.Conn) {
	t, ok := Raw(c).(*net.TCPConn)
	if !ok || w == nil {
		return
	}
	w.mu.Lock()
	w.conns[t] = time.Time{}
	w.mu.Unlock()
}

// Dial is dial whose connections are watched.
func (w *Watch) Dial(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err == nil {
			w.Add(c)
		}
		return c, err
	}
}

// Run looks at all connections from time to time until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	ticker := time.NewTicker(w.every)
	defer ticker.Stop()
	var list []*net.TCPConn
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		list = list[:0]
		w.mu.Lock()
		for c := range w.conns {
			list = append(list, c)
		}
		w.mu.Unlock()
		for _, c := range list {
			w.look(c, time.Now())
		}
		clear(list)
	}
}

// look ends c if its peer is gone. One system call a connection, without mu.
func (w *Watch) look(c *net.TCPConn, now time.Time) {
	var info *unix.TCPInfo
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { info, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	}
	w.mu.Lock()
	since := w.conns[c]
	switch {
	case err != nil || info == nil:
		delete(w.conns, c)
		w.mu.Unlock()
		return
	case info.Unacked == 0 && info.Notsent_bytes == 0:
		w.conns[c] = time.Time{}
		w.mu.Unlock()
		return
	case since.IsZero():
		w.conns[c] = now
	}
	w.mu.Unlock()
	if since.IsZero() || now.Sub(since) < w.limit || time.Duration(info.Last_ack_recv)*time.Millisecond < w.limit {
		return
	}
	// The kernel asks ever more seldom, so that silence alone proves nothing.
	if info.Unacked > 0 && info.Retransmits >= vainRetransmits || info.Unacked == 0 && info.Probes >= vainProbes {
		Abort(c)
	}
}
