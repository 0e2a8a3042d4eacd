package exchange

import (
	"errors"
	"sync"
	"time"

	"github.com/hauberk-mesh/hauberk/proxy/hangup"
)

// errClientGone is why a request is given up that nobody waits for any more.
var errClientGone = errors.New("the client is gone")

// presence is what is known of a client that waits for its response. A reset
// gives up the request at once. The end of its direction alone may be a
// half-close, behind which it still reads, so that it is asked: an interim
// response is nothing to a client that reads (RFC 9110 section 15.2.1), and the
// kernel of one that closed answers it with a reset.
type presence struct {
	mu      sync.Mutex
	up      *Conn // guarded by mu; where the request is, nil without one
	waiting bool  // guarded by mu; a head of up is being read
	moved   bool  // guarded by mu; up's read deadline is not up.readBy
	ended   bool  // guarded by mu; the client sends nothing more
	asked   bool  // guarded by mu; and was asked whether it reads
	gone    bool  // guarded by mu
}

// askAfter is how long a client that ended its direction is let wait before it
// is asked, and how soon again if the body of its request was still being read:
// most answers come sooner.
const askAfter = time.Second

// past is a deadline that ends what waits now.
var past = time.Unix(1, 0)

// tell is the hangup.Watcher's.
func (p *presence) tell(e hangup.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.gone = p.gone || e == hangup.Gone
	p.wake()
}

// wake ends the wait that must end, with mu held.
func (p *presence) wake() {
	switch {
	case p.up == nil:
	case p.gone:
		_ = p.up.Conn.SetDeadline(past)
	case p.ended && !p.asked && p.waiting && !p.moved:
		p.moved = true
		p.postpone()
	}
}

// postpone makes the wait end in time to ask, with mu held.
func (p *presence) postpone() {
	by := p.up.readBy
	if soon := time.Now().Add(askAfter); soon.Before(by) {
		by = soon
	}
	_ = p.up.Conn.SetReadDeadline(by)
}

// begin says where the request is from now on, nil for nowhere. An end that
// came before counts.
func (p *presence) begin(up *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.up, p.asked = up, false
	p.wake()
}

// recall repeats what a deadline that was set since has undone.
func (p *presence) recall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wake()
}

// await says whether a head of up is being read.
func (p *presence) await(waiting bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = waiting
	if p.moved {
		p.moved = false
		_ = p.up.Conn.SetReadDeadline(p.up.readBy)
	}
	p.wake()
}

// ask reports whether a wait that timed out did so because the client is to be
// asked, and goes on. whole says that all of the request was read.
func (p *presence) ask(whole bool) (wait, now bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone || !p.moved {
		return false, false
	}
	if !time.Now().Before(p.up.readBy) {
		return false, false // the time for the response is over
	}
	if !whole {
		p.postpone()
		return true, false
	}
	p.asked, p.moved = true, false
	_ = p.up.Conn.SetReadDeadline(p.up.readBy)
	return true, true
}

// isGone reports whether nobody waits for the response.
func (p *presence) isGone() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gone
}
