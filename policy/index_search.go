package policy

import "math/bits"

// mostFound is how many lists of one column a flow may be found in; with more
// of them the column is left out for this flow.
const mostFound = 16

// dense is a set of rule numbers with a bit for each.
type dense struct {
	words   []uint64
	summary []uint64 // a bit for each word that is not empty
}

func newDense(n int) dense {
	words := (n + 63) / 64
	return dense{make([]uint64, words), make([]uint64, (words+63)/64)}
}

func (d *dense) set(n int) {
	d.words[n>>6] |= 1 << (n & 63)
	d.summary[n>>12] |= 1 << (n >> 6 & 63)
}

func (d *dense) count() int {
	n := 0
	for _, w := range d.words {
		n += bits.OnesCount64(w)
	}
	return n
}

// found is what one column says about a flow: the rules of anyone and of the
// lists may match.
type found struct {
	anyone *dense
	n      int
	lists  [mostFound]uint32
	// overflow: there are more lists than fit.
	overflow bool
}

// add takes a list; 0 is none.
func (f *found) add(list uint32) {
	switch {
	case list == 0:
	case f.n == mostFound:
		f.overflow = true
	default:
		f.lists[f.n] = list
		f.n++
	}
}

// search goes through the rules that may match one flow, in order.
type search struct {
	x       *ruleIndex
	among   *dense // the rules that count
	n       int    // of columns
	columns [5]found

	from int // rules before it are done with
	// sum is the summary's word that is gone through, and which words of rules it
	// still promises; word is the one that is gone through, and which of its rules are
	// left.
	sum, word         int
	sumLeft, wordLeft uint64
}

func (q *search) init(x *ruleIndex, v *view, audit bool) {
	q.x, q.among = x, &x.enforcing
	if audit {
		q.among = &x.live
	}
	x.ports.find(q, v)
	switch {
	case v.unknown&UnknownHTTP != 0: // it may be any request
	case v.flow.HTTP == nil || v.none&UnknownHTTP != 0:
		q.column(&x.plain)
		q.keep()
	default:
		x.paths.find(q, v.flow.HTTP.Path)
		x.methods.find(q, v.flow.HTTP.Method)
		x.hosts.find(q, v.flow.HTTP.Host)
	}
	x.peers.find(q, v)
	q.word, q.sumLeft = -1, q.summary(0)
}

// column begins to look at one; keep ends it.
func (q *search) column(anyone *dense) *found {
	c := &q.columns[q.n]
	c.anyone = anyone
	return c
}

func (q *search) keep() {
	if c := &q.columns[q.n]; c.overflow {
		*c = found{}
		return
	}
	q.n++
}

// next is the next rule before end that may match, or -1.
func (q *search) next(end int) int {
	for {
		for q.wordLeft == 0 {
			if q.sumLeft == 0 && !q.more() {
				return -1
			}
			q.word = q.sum<<6 | bits.TrailingZeros64(q.sumLeft)
			q.sumLeft &= q.sumLeft - 1
			q.wordLeft = q.candidates(q.word)
		}
		n := q.word<<6 | bits.TrailingZeros64(q.wordLeft)
		if n >= end {
			return -1
		}
		q.wordLeft &= q.wordLeft - 1
		if n >= q.from {
			return n
		}
	}
}

// more goes on to a summary's word that promises something.
func (q *search) more() bool {
	for q.sum+1 < len(q.among.summary) {
		q.sum++
		if q.sumLeft = q.summary(q.sum); q.sumLeft != 0 {
			return true
		}
	}
	return false
}

// skip goes on to the rule numbered to.
func (q *search) skip(to int) {
	q.from = to
	word := to >> 6
	if q.word >= word {
		return
	}
	q.wordLeft = 0
	if sum := word >> 6; q.sum < sum {
		if sum >= len(q.among.summary) {
			q.sum, q.sumLeft = len(q.among.summary), 0
			return
		}
		q.sum, q.sumLeft = sum, q.summary(sum)
	}
	q.sumLeft &^= 1<<(word&63) - 1
}

// summary promises words of rules: all that have candidates, and perhaps others.
func (q *search) summary(sum int) uint64 {
	all := q.among.summary[sum]
	for i := 0; i < q.n && all != 0; i++ {
		c := &q.columns[i]
		some := c.anyone.summary[sum]
		for _, list := range c.lists[:c.n] {
			some |= q.x.lists.words[int(list)+sum]
		}
		all &= some
	}
	return all
}

// candidates are the rules of one word that may match.
func (q *search) candidates(word int) uint64 {
	all := q.among.words[word]
	for i := 0; i < q.n && all != 0; i++ {
		c := &q.columns[i]
		some := c.anyone.words[word]
		for _, list := range c.lists[:c.n] {
			some |= q.x.lists.word(int(list), word)
		}
		all &= some
	}
	return all
}

// word is one word of the list that begins at list.
func (l *lists) word(list, word int) uint64 {
	sum, bit := word>>6, uint(word&63)
	summary := l.words[list : list+l.summary]
	if summary[sum]>>bit&1 == 0 {
		return 0
	}
	rank := bits.OnesCount64(summary[sum] & (1<<bit - 1))
	for _, s := range summary[:sum] {
		rank += bits.OnesCount64(s)
	}
	return l.words[list+l.summary+rank]
}
