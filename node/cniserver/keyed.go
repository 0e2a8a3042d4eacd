package cniserver

import (
	"context"
	"sync"
)

// keyedMutex serialises work on one key and lets other keys be.
type keyedMutex struct {
	mu   sync.Mutex
	keys map[string]*keyed
}

type keyed struct {
	held  chan struct{} // of size 1: full while somebody holds the key
	users int           // who hold it or wait for it
}

func newKeyedMutex() *keyedMutex { return &keyedMutex{keys: map[string]*keyed{}} }

// lock waits for the key or the end of ctx.
func (m *keyedMutex) lock(ctx context.Context, key string) (unlock func(), err error) {
	m.mu.Lock()
	k := m.keys[key]
	if k == nil {
		k = &keyed{held: make(chan struct{}, 1)}
		m.keys[key] = k
	}
	k.users++
	m.mu.Unlock()

	leave := func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(m.keys, key)
		}
	}
	select {
	case k.held <- struct{}{}:
		return func() { <-k.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
