package directory

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// ErrAbsent: the control plane said that the name does not exist. ErrUnknown: it
// said nothing in time.
var (
	ErrAbsent  = errors.New("not known to the mesh")
	ErrUnknown = errors.New("the control plane has not answered")
)

// table is resources of one type that were asked for by name: subscribed at
// the first question, watched from then on, forgotten when unused.
type table[T any] struct {
	limit int

	mu          sync.Mutex
	subscribe   func(name string)    // guarded by mu
	unsubscribe func(name string)    // guarded by mu
	entries     map[string]*entry[T] // guarded by mu
}

type entry[T any] struct {
	name     string
	answered chan struct{} // closed by the first answer
	once     sync.Once
	value    atomic.Pointer[T] // nil while absent or unknown
	used     atomic.Int64      // Unix nanoseconds
	holders  atomic.Int64
}

func newTable[T any](limit int) *table[T] {
	return &table[T]{limit: limit, entries: make(map[string]*entry[T])}
}

func (t *table[T]) bind(subscribe, unsubscribe func(name string)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.subscribe, t.unsubscribe = subscribe, unsubscribe
}

// hold finds or subscribes the entry; the caller must release it.
func (t *table[T]) hold(name string, now time.Time) *entry[T] {
	t.mu.Lock()
	e, ok := t.entries[name]
	if !ok {
		e = &entry[T]{name: name, answered: make(chan struct{})}
		t.entries[name] = e
	}
	e.holders.Add(1)
	e.used.Store(now.UnixNano())
	var evicted string
	if !ok && len(t.entries) > t.limit {
		evicted = t.evictOldest()
	}
	subscribe, unsubscribe := t.subscribe, t.unsubscribe
	t.mu.Unlock()
	if !ok && subscribe != nil {
		subscribe(name)
	}
	if evicted != "" && unsubscribe != nil {
		unsubscribe(evicted)
	}
	return e
}

// evictOldest makes room; everything held stays, so the table may exceed its
// limit by what live connections hold.
func (t *table[T]) evictOldest() string {
	var oldest *entry[T]
	for _, e := range t.entries {
		if e.holders.Load() == 0 && (oldest == nil || e.used.Load() < oldest.used.Load()) {
			oldest = e
		}
	}
	if oldest == nil {
		return ""
	}
	delete(t.entries, oldest.name)
	return oldest.name
}

func (e *entry[T]) release() { e.holders.Add(-1) }

// wait returns the value once the control plane has answered.
func (e *entry[T]) wait(ctx context.Context, limit time.Duration) (*T, error) {
	select {
	case <-e.answered:
	default:
		timer := time.NewTimer(limit)
		defer timer.Stop()
		select {
		case <-e.answered:
		case <-timer.C:
			return nil, ErrUnknown
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if v := e.value.Load(); v != nil {
		return v, nil
	}
	return nil, ErrAbsent
}

// set notes an answer, nil for absent. It reports whether the name was asked
// for.
func (t *table[T]) set(name string, v *T) bool {
	t.mu.Lock()
	e, ok := t.entries[name]
	t.mu.Unlock()
	if !ok {
		return false
	}
	e.value.Store(v)
	e.once.Do(func() { close(e.answered) })
	return true
}

// sweep forgets what nobody holds or asked for since before.
func (t *table[T]) sweep(before time.Time) {
	var names []string
	t.mu.Lock()
	for name, e := range t.entries {
		if e.holders.Load() == 0 && e.used.Load() < before.UnixNano() {
			delete(t.entries, name)
			names = append(names, name)
		}
	}
	unsubscribe := t.unsubscribe
	t.mu.Unlock()
	for _, name := range names {
		if unsubscribe != nil {
			unsubscribe(name)
		}
	}
}

// each calls f with what is known, absent names included.
func (t *table[T]) each(f func(name string, v *T)) {
	t.mu.Lock()
	entries := make([]*entry[T], 0, len(t.entries))
	for _, e := range t.entries {
		entries = append(entries, e)
	}
	t.mu.Unlock()
	for _, e := range entries {
		f(e.name, e.value.Load())
	}
}
