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
//
// What nobody holds waits in one of two queues, least recently used last: once
// for names that were held a single time, hot for those that were held again.
// Room is made from once first, so that a client which comes from a new address
// each time can only push out others like it. Everything is O(1) in the number
// of entries.
type table[T any] struct {
	limit int

	mu          sync.Mutex
	subscribe   func(name string)    // guarded by mu; called with mu held, so that its order is the entries'
	unsubscribe func(name string)    // likewise
	entries     map[string]*entry[T] // guarded by mu
	once, hot   queue[T]             // guarded by mu
}

type entry[T any] struct {
	table    *table[T]
	name     string
	answered chan struct{} // closed by the first answer
	first    sync.Once
	value    atomic.Pointer[T] // nil while absent or unknown

	// Guarded by the table's mu.
	used       int64 // Unix nanoseconds
	holders    int
	again      bool      // it was held more than once
	in         *queue[T] // where it waits, nil while held
	next, prev *entry[T] // in that queue, next towards the more recently used
}

// queue is a list of entries that nobody holds. The zero queue is empty.
type queue[T any] struct {
	newest, oldest *entry[T]
	n              int
}

func (q *queue[T]) push(e *entry[T]) {
	e.in, e.next, e.prev = q, nil, q.newest
	if q.newest != nil {
		q.newest.next = e
	} else {
		q.oldest = e
	}
	q.newest = e
	q.n++
}

func (q *queue[T]) remove(e *entry[T]) {
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		q.newest = e.prev
	}
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		q.oldest = e.next
	}
	e.in, e.next, e.prev = nil, nil, nil
	q.n--
}

func newTable[T any](limit int) *table[T] {
	return &table[T]{limit: limit, entries: make(map[string]*entry[T])}
}

// bind sets who is told of names. They must not call back.
func (t *table[T]) bind(subscribe, unsubscribe func(name string)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.subscribe, t.unsubscribe = subscribe, unsubscribe
}

// hold finds or subscribes the entry; the caller must release it.
func (t *table[T]) hold(name string, now time.Time) *entry[T] {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.entries[name]
	switch {
	case !ok:
		e = &entry[T]{table: t, name: name, answered: make(chan struct{})}
		t.entries[name] = e
		if t.subscribe != nil {
			t.subscribe(name)
		}
	case e.in != nil:
		e.in.remove(e)
		e.again = true
	default:
		e.again = true
	}
	e.holders++
	e.used = now.UnixNano()
	t.trim()
	return e
}

func (e *entry[T]) release() {
	t := e.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.holders--; e.holders > 0 {
		return
	}
	if !e.again {
		t.once.push(e)
	} else {
		t.hot.push(e)
		if t.hot.n > t.limit-t.limit/4 {
			// There is always room for new names to prove themselves.
			cool := t.hot.oldest
			t.hot.remove(cool)
			cool.again = false
			t.once.push(cool)
		}
	}
	t.trim()
}

// trim makes room; everything held stays, so the table may exceed its limit by
// what live connections hold.
func (t *table[T]) trim() {
	for len(t.entries) > t.limit {
		e := t.once.oldest
		if e == nil {
			e = t.hot.oldest
		}
		if e == nil {
			return
		}
		t.forget(e)
	}
}

// forget drops an entry that waits in a queue.
func (t *table[T]) forget(e *entry[T]) {
	e.in.remove(e)
	delete(t.entries, e.name)
	if t.unsubscribe != nil {
		t.unsubscribe(e.name)
	}
}

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
	e.first.Do(func() { close(e.answered) })
	return true
}

// sweep forgets what nobody holds or asked for since before.
func (t *table[T]) sweep(before time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, q := range []*queue[T]{&t.once, &t.hot} {
		for e := q.oldest; e != nil; {
			next := e.next
			if e.used < before.UnixNano() {
				t.forget(e)
			}
			e = next
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
