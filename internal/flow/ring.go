package flow

import (
	"sync"
	"sync/atomic"
	"time"
)

// queue is how many records wait for one subscriber that is slow.
const queue = 256

// Ring keeps the last records and hands new ones to subscribers. Adding never
// waits: the oldest record makes room, and a subscriber that is slow misses
// records and is told how many.
type Ring struct {
	// allows is how many subscribers want allowed flows: nobody pays for making
	// those records while it is zero.
	allows atomic.Int32
	added  atomic.Uint64

	mu          sync.Mutex
	records     []Record // guarded by mu; a circle once it is full
	capacity    int
	next        int // where the next record goes, once the circle is full
	subscribers map[*Subscription]struct{}
	closed      bool

	limit limiter
	lost  uint64 // guarded by mu: refused by the limit since the last record
}

// NewRing keeps capacity records and takes in at most perSecond a second, with a
// burst of twice that; zero means no limit.
func NewRing(capacity, perSecond int) *Ring {
	return &Ring{capacity: max(capacity, 1), subscribers: map[*Subscription]struct{}{},
		limit: limiter{rate: float64(perSecond), burst: float64(2 * perSecond)}}
}

// Wants reports whether a record of verdict would be of use to anybody: denials
// are always kept, allowed flows only while somebody asks for them.
func (r *Ring) Wants(verdict string) bool {
	return r != nil && (verdict != Allow || r.allows.Load() > 0)
}

// Offer adds the record that build makes, unless the limit was reached: then
// build is not called, and the next record tells the loss.
func (r *Ring) Offer(build func() Record) {
	now := time.Now()
	r.mu.Lock()
	if r.limit.rate > 0 && !r.limit.allow(now) {
		r.lost++
		r.mu.Unlock()
		return
	}
	r.mu.Unlock()
	r.Add(build())
}

// Add adds a record.
func (r *Ring) Add(rec Record) {
	r.added.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	rec.Lost += r.lost
	r.lost = 0
	// An allowed flow is for those who ask now; it must not push out denials.
	if rec.Verdict != Allow || rec.Audit != nil {
		if len(r.records) < r.capacity {
			r.records = append(r.records, rec)
		} else {
			r.records[r.next] = rec
			r.next = (r.next + 1) % r.capacity
		}
	}
	for s := range r.subscribers {
		s.offer(rec)
	}
}

// Added is how many records there ever were.
func (r *Ring) Added() uint64 { return r.added.Load() }

// Subscription is a reader's place at a ring.
type Subscription struct {
	ring   *Ring
	filter Filter
	allows bool
	c      chan Record
	lost   uint64 // guarded by the ring's mu
}

// Subscribe returns the records that are kept and wanted, oldest first, and a
// subscription to those that come. The reader must Close it.
func (r *Ring) Subscribe(f Filter) ([]Record, *Subscription) {
	s := &Subscription{ring: r, filter: f, allows: f.Verdict != Deny, c: make(chan Record, queue)}
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := r.kept(&f)
	if r.closed {
		close(s.c)
		return kept, s
	}
	r.subscribers[s] = struct{}{}
	if s.allows {
		r.allows.Add(1)
	}
	return kept, s
}

// Recent returns the records that are kept and wanted, oldest first.
func (r *Ring) Recent(f Filter) []Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kept(&f)
}

func (r *Ring) kept(f *Filter) []Record {
	var out []Record
	for i := range r.records {
		if rec := &r.records[(r.next+i)%len(r.records)]; f.Match(rec) {
			out = append(out, *rec)
		}
	}
	return out
}

// offer hands a record over without waiting; the ring's mu is held.
func (s *Subscription) offer(rec Record) {
	if !s.filter.Match(&rec) {
		s.lost += rec.Lost
		return
	}
	rec.Lost += s.lost
	select {
	case s.c <- rec:
		s.lost = 0
	default:
		s.lost = rec.Lost + 1
	}
}

// Records is closed when the subscription or the ring is.
func (s *Subscription) Records() <-chan Record { return s.c }

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	s.ring.mu.Lock()
	defer s.ring.mu.Unlock()
	s.ring.remove(s)
}

func (r *Ring) remove(s *Subscription) {
	if _, ok := r.subscribers[s]; !ok {
		return
	}
	delete(r.subscribers, s)
	if s.allows {
		r.allows.Add(-1)
	}
	close(s.c)
}

// Close ends all subscriptions; records are still kept.
func (r *Ring) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for s := range r.subscribers {
		r.remove(s)
	}
}

// limiter is a token bucket; its owner guards it.
type limiter struct {
	rate, burst float64
	tokens      float64
	last        time.Time
}

func (l *limiter) allow(now time.Time) bool {
	if l.last.IsZero() {
		l.tokens = l.burst
	} else {
		l.tokens = min(l.burst, l.tokens+l.rate*now.Sub(l.last).Seconds())
	}
	l.last = now
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}
