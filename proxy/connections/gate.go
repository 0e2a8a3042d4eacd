package connections

import (
	"container/list"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hauberk-mesh/hauberk/proxy/socket"
)

// What a connection may cost, for the defaults: idle ones were measured at 20 to
// 49 KB a pair of sidecars, and one whose ClientHello is still coming holds up
// to 32 KB of it twice. Each has a descriptor on either side; a splice takes more
// and does without when there are none. Some stay for all else.
const (
	memoryOfOne     = 32 << 10
	memoryOfOpening = 64 << 10
	descriptorsOf   = 2
	descriptorsKept = 256

	fewest     = 512
	most       = 1 << 16
	fewOpening = 128
)

// Limits bound the connections of one listener.
type Limits struct {
	// Connections is how many live at once.
	Connections int
	// Opening is how many of them have not proved who they are, or not said
	// what they speak; 0 bounds them by Connections only.
	Opening int
}

// DefaultLimits give connections half of the process's memory limit, and those
// that open an eighth, as far as descriptors reach.
func DefaultLimits() Limits {
	memory := debug.SetMemoryLimit(-1)
	if memory == math.MaxInt64 {
		memory = 2 * most * memoryOfOne
	}
	l := Limits{Connections: int(min(memory/2/memoryOfOne, most)), Opening: int(min(memory/8/memoryOfOpening, most/8))}
	var files syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files) == nil {
		l.Connections = int(min(uint64(l.Connections), (max(files.Cur, descriptorsKept)-descriptorsKept)/descriptorsOf))
	}
	l.Connections = max(l.Connections, fewest)
	l.Opening = max(min(l.Opening, l.Connections/4), fewOpening)
	return l
}

// Gate admits connections within limits. At a limit the source that holds most
// gives way: at that of opening connections its oldest one, at that of all its
// newest, unless the newcomer's source holds as much. So one source can fill
// the gate only as long as nobody else comes. All of it is O(1) in the number
// of connections.
type Gate struct {
	limits    Limits
	direction string
	refused   func(direction, reason string)
	log       *slog.Logger

	mu      sync.Mutex
	all     class     // guarded by mu
	opening class     // guarded by mu
	shed    int       // guarded by mu; since told
	told    time.Time // guarded by mu
}

// logEvery bounds how often a full gate is told of.
const logEvery = 10 * time.Second

// NewGate makes a gate. Refused counts what is turned away, for one of the
// reasons connection_limit and opening_limit.
func NewGate(limits Limits, direction string, refused func(direction, reason string), log *slog.Logger) *Gate {
	return &Gate{limits: limits, direction: direction, refused: refused, log: log, all: newClass(), opening: newClass()}
}

// Pass is one admitted connection.
type Pass struct {
	gate    *Gate
	conn    net.Conn
	source  netip.Addr
	ended   atomic.Bool
	all     *list.Element // guarded by the gate's mu; nil when not counted
	opening *list.Element // guarded by the gate's mu
}

// Enter admits c, or aborts it and returns nil. The caller must call Leave.
func (g *Gate) Enter(source netip.Addr, c net.Conn) *Pass {
	source = shareOf(source)
	p := &Pass{gate: g, conn: c, source: source}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all.n >= g.limits.Connections {
		heavy := g.all.heaviest()
		if g.all.count(source)+1 >= heavy.members.Len() {
			g.turnAway(c, "connection_limit")
			return nil
		}
		g.end(heavy.members.Back().Value.(*Pass), "connection_limit")
	}
	if g.limits.Opening > 0 {
		if g.opening.n >= g.limits.Opening {
			g.end(g.opening.heaviest().members.Front().Value.(*Pass), "opening_limit")
		}
		p.opening = g.opening.add(p)
	}
	p.all = g.all.add(p)
	return p
}

// shareOf is what counts as one source: an IPv6 host has a whole /64.
func shareOf(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// end takes an admitted connection back, with mu held.
func (g *Gate) end(p *Pass, reason string) {
	p.ended.Store(true)
	g.drop(p)
	g.turnAway(p.conn, reason)
}

func (g *Gate) turnAway(c net.Conn, reason string) {
	g.refused(g.direction, reason)
	socket.Abort(c)
	g.shed++
	if now := time.Now(); now.Sub(g.told) >= logEvery {
		g.log.Warn("connections are turned away: the limit is reached", "direction", g.direction, "reason", reason,
			"count", g.shed, "peer", c.RemoteAddr().String(), "connections", g.all.n, "opening", g.opening.n)
		g.told, g.shed = now, 0
	}
}

func (g *Gate) drop(p *Pass) {
	if p.all != nil {
		g.all.remove(p.source, p.all)
		p.all = nil
	}
	if p.opening != nil {
		g.opening.remove(p.source, p.opening)
		p.opening = nil
	}
}

// Opened says that it is known who the client is and what it speaks.
func (p *Pass) Opened() {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	if p.opening != nil {
		p.gate.opening.remove(p.source, p.opening)
		p.opening = nil
	}
}

// Ended reports whether the gate took the connection back.
func (p *Pass) Ended() bool { return p.ended.Load() }

// Leave ends it.
func (p *Pass) Leave() {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	p.gate.drop(p)
}

// Listener is l with the connections that the gate admits. They leave when they
// are closed.
func (g *Gate) Listener(l net.Listener) net.Listener { return &gated{l, g} }

type gated struct {
	net.Listener
	gate *Gate
}

// Accept returns the next one that is admitted.
func (l *gated) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		source := netip.Addr{}
		if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
			source = a.AddrPort().Addr()
		}
		if p := l.gate.Enter(source, c); p != nil {
			return &admitted{c, p}, nil
		}
	}
}

type admitted struct {
	net.Conn
	pass *Pass
}

// Close closes and leaves.
func (c *admitted) Close() error {
	c.pass.Leave()
	return c.Conn.Close()
}

// NetConn is the connection underneath.
func (c *admitted) NetConn() net.Conn { return c.Conn }

// class counts connections by source and knows the source that has most.
type class struct {
	n       int
	sources map[netip.Addr]*share
	byCount []*list.List // of *share, by how many they have
}

// share is what one source has, oldest first.
type share struct {
	members *list.List // of *Pass
	place   *list.Element
}

func newClass() class { return class{sources: make(map[netip.Addr]*share)} }

func (c *class) count(source netip.Addr) int {
	if s, ok := c.sources[source]; ok {
		return s.members.Len()
	}
	return 0
}

func (c *class) add(p *Pass) *list.Element {
	s, ok := c.sources[p.source]
	if !ok {
		s = &share{members: list.New()}
		c.sources[p.source] = s
	}
	c.unrank(s)
	e := s.members.PushBack(p)
	c.rank(s)
	c.n++
	return e
}

func (c *class) remove(source netip.Addr, e *list.Element) {
	s := c.sources[source]
	c.unrank(s)
	s.members.Remove(e)
	c.rank(s)
	c.n--
	if s.members.Len() == 0 {
		delete(c.sources, source)
	}
}

func (c *class) rank(s *share) {
	n := s.members.Len()
	if n == 0 {
		return
	}
	for len(c.byCount) < n {
		c.byCount = append(c.byCount, list.New())
	}
	s.place = c.byCount[n-1].PushBack(s)
}

// unrank leaves no empty list at the end. It goes down by one step a call.
func (c *class) unrank(s *share) {
	if s.place == nil {
		return
	}
	n := s.members.Len()
	c.byCount[n-1].Remove(s.place)
	s.place = nil
	for last := len(c.byCount) - 1; last >= 0 && c.byCount[last].Len() == 0; last-- {
		c.byCount = c.byCount[:last]
	}
}

// heaviest is a share that none exceeds; there must be one.
func (c *class) heaviest() *share { return c.byCount[len(c.byCount)-1].Front().Value.(*share) }
