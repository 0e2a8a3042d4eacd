package upstream

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/hauberk-mesh/hauberk/proxy/directory"
)

// Pick chooses an endpoint of d: those that are ready before those that
// terminate, none that is neither; those of the own zone where they are enough;
// of two at random the less loaded; none of tried while there is another; those
// that were set aside only when all are. The address of one pod is tried
// whatever its readiness, as without a mesh.
func (s *Set) Pick(d *directory.Destination, tried []Choice) (Choice, error) {
	return s.pick(d, tried, time.Now())
}

func (s *Set) pick(d *directory.Destination, tried []Choice, now time.Time) (Choice, error) {
	var buf [32]*endpoint // most destinations have fewer
	list, failed := s.resolve(buf[:0], d, now)
	crowded := tooManyAside(d, list, now)
	zone := ""
	if s.zone != nil {
		zone = s.zone()
	}
	var all, near sample // of the best rank
	bestRank := 0
	for i, e := range list {
		if e == nil || slices.ContainsFunc(tried, func(t Choice) bool { return t.e == e }) {
			continue
		}
		rank := rankOf(d, &d.Endpoints[i])
		if e.aside(now, crowded) {
			rank -= rankReady
		}
		if all.n > 0 && rank < bestRank {
			continue
		}
		if all.n == 0 || rank > bestRank {
			bestRank, all, near = rank, sample{}, sample{}
		}
		all.add(i)
		if zone != "" && d.Endpoints[i].Zone == zone {
			near.add(i)
		}
	}
	if all.n == 0 {
		if failed != nil {
			return Choice{}, failed
		}
		return Choice{}, ErrNoEndpoint
	}
	from := &all
	if bestRank == rankReady && nearIsEnough(near.n, all.n, d.Zones) {
		from = &near
	}
	i := from.less(list)
	if !list[i].try(now, crowded) && from.n > 1 {
		// Somebody else finds out about it. Of the other that is known already, or it
		// is on trial as well and one is as good as the other.
		i = from.other(i)
	}
	e := list[i]
	return Choice{Endpoint: d.Endpoints[i], Meshed: e.meshed(), e: e}, nil
}

// resolve appends the state of each endpoint of d, nil for those that are not to
// be used. An identity that can't be expected is as good as none, and told only
// when nothing else is left.
func (s *Set) resolve(list []*endpoint, d *directory.Destination, now time.Time) (_ []*endpoint, failed error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range d.Endpoints {
		de := &d.Endpoints[i]
		var e *endpoint
		if rankOf(d, de) != 0 {
			var err error
			if e, err = s.endpoint(de, now); err != nil {
				e, failed = nil, err
			}
		}
		list = append(list, e)
	}
	return list, failed
}

// tooManyAside reports whether more than half of what is ready is set aside: the
// fault may then be nearer than the endpoints, and the rest must not carry all
// for long. They are then tried again each second.
func tooManyAside(d *directory.Destination, list []*endpoint, now time.Time) bool {
	ready, aside := 0, 0
	for i, e := range list {
		if e == nil || rankOf(d, &d.Endpoints[i]) != rankReady {
			continue
		}
		ready++
		if e.aside(now, false) {
			aside++
		}
	}
	return aside*2 > ready
}

// nearIsEnough reports whether the endpoints of the own zone can carry what the
// zone's clients send: there are two at least, and they are four fifths of what
// an even spread over the zones would give, so that none gets much more than it
// would without preference. Zones is 0 where any endpoint's is not known.
func nearIsEnough(near, all, zones int) bool {
	return zones > 1 && near >= 2 && near < all && near*zones*5 >= all*4
}

// sample keeps two of the indices that pass, each with the same probability.
type sample struct{ n, first, second int }

func (s *sample) add(i int) {
	s.n++
	switch s.n {
	case 1:
		s.first = i
	case 2:
		s.second = i
	default:
		switch rand.IntN(s.n) {
		case 0:
			s.first = i
		case 1:
			s.second = i
		}
	}
}

// less is the one of the two with less load.
func (s *sample) less(list []*endpoint) int {
	if s.n == 1 {
		return s.first
	}
	a, b := list[s.first].load(), list[s.second].load()
	if b < a || b == a && rand.IntN(2) == 0 {
		return s.second
	}
	return s.first
}

func (s *sample) other(i int) int {
	if i == s.first {
		return s.second
	}
	return s.first
}

// rankReady is also how far setting aside moves an endpoint down: below all
// that were not set aside, in their order.
const rankReady = 10

// rankOf is the order of readiness; 0 is not to be used.
func rankOf(d *directory.Destination, e *directory.Endpoint) int {
	switch {
	case e.Ready && !e.Terminating:
		return rankReady
	case e.Ready || e.Terminating:
		return 5
	case d.Kind == "Service":
		return 0
	}
	return 1
}
