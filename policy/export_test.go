package policy

// Candidates is how many rules the set's index finds for the flow, or -1
// without an index.
func (s *Set) Candidates(d Direction, f *Flow) int {
	x := s.index(d)
	if x == nil {
		return -1
	}
	var v view
	v.init(d, f, 0)
	var q search
	q.init(x, &v, false)
	n := 0
	for q.next(len(x.rules)) >= 0 {
		n++
	}
	return n
}
