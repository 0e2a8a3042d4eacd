package ca

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Of requests from one address: pods on the host's network share theirs, and a
// node may start all its pods at once.
const (
	peerRate  = 10 // a second
	peerBurst = 100

	maxPeers = 4096
	peerIdle = time.Minute // then its burst is whole again
)

// limiter bounds requests by address, and its own memory: addresses beyond
// maxPeers share one allowance.
type limiter struct {
	mu     sync.Mutex
	peers  map[netip.Addr]*peerLimit
	others *rate.Limiter
}

type peerLimit struct {
	limiter *rate.Limiter
	used    time.Time
}

func newLimiter() *limiter {
	return &limiter{peers: make(map[netip.Addr]*peerLimit), others: rate.NewLimiter(peerRate, peerBurst)}
}

func (l *limiter) allow(addr netip.Addr, now time.Time) bool {
	addr = addr.Unmap()
	l.mu.Lock()
	defer l.mu.Unlock()
	peer := l.peers[addr]
	if peer == nil {
		if len(l.peers) >= maxPeers {
			for other, limit := range l.peers {
				if now.Sub(limit.used) > peerIdle {
					delete(l.peers, other)
				}
			}
		}
		if len(l.peers) >= maxPeers {
			return l.others.AllowN(now, 1)
		}
		peer = &peerLimit{limiter: rate.NewLimiter(peerRate, peerBurst)}
		l.peers[addr] = peer
	}
	peer.used = now
	return peer.limiter.AllowN(now, 1)
}
