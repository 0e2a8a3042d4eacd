package connections

import (
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// seen is a connection that notes its end.
type seen struct {
	net.Conn
	closed bool
}

func (s *seen) Close() error         { s.closed = true; return nil }
func (s *seen) RemoteAddr() net.Addr { return &net.TCPAddr{} }

func gate(l Limits) (*Gate, map[string]int) {
	refused := make(map[string]int)
	return NewGate(l, "inbound", func(_, reason string) { refused[reason]++ }, slog.New(slog.NewTextHandler(io.Discard, nil))), refused
}

func address(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestFloodOfOneSource(t *testing.T) {
	g, refused := gate(Limits{Connections: 100, Opening: 10})
	attacker, victim := address("10.0.0.1"), address("10.0.0.2")
	mine := &seen{}
	p := g.Enter(victim, mine)
	for range 1000 {
		g.Enter(attacker, &seen{})
	}
	if mine.closed || p.Ended() || g.opening.n != 10 || g.all.n != 10 {
		t.Errorf("victim closed %v; %d opening of %d", mine.closed, g.opening.n, g.all.n)
	}
	if d := cmp.Diff(map[string]int{"opening_limit": 991}, refused); d != "" {
		t.Error(d)
	}
	p.Leave()
	p.Leave() // twice is once
	if g.opening.n != 9 {
		t.Errorf("%d are opening", g.opening.n)
	}
}

func TestFullOfOpened(t *testing.T) {
	g, refused := gate(Limits{Connections: 10, Opening: 5})
	heavy, light := address("10.0.0.1"), address("10.0.0.2")
	var theirs []*seen
	for range 12 {
		c := &seen{}
		theirs = append(theirs, c)
		if p := g.Enter(heavy, c); p != nil {
			p.Opened()
		}
	}
	// At the limit the heavy source gets no more, and keeps what it has.
	for i, c := range theirs {
		if c.closed != (i >= 10) {
			t.Errorf("connection %d: closed %v", i, c.closed)
		}
	}
	// Others get in until they have as much.
	var passes []*Pass
	for range 8 {
		if p := g.Enter(light, &seen{}); p != nil {
			p.Opened()
			passes = append(passes, p)
		}
	}
	if g.all.count(heavy) != 5 || g.all.count(light) != 5 || len(passes) != 5 {
		t.Errorf("%d and %d", g.all.count(heavy), g.all.count(light))
	}
	if !theirs[9].closed || theirs[0].closed {
		t.Error("the newest of the heavy source should go first")
	}
	if d := cmp.Diff(map[string]int{"connection_limit": 10}, refused); d != "" {
		t.Error(d)
	}
}

func TestSources(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		same bool
	}{
		{"10.0.0.1", "10.0.0.2", false},
		{"::ffff:10.0.0.1", "10.0.0.1", true},
		{"fd00::1", "fd00::2", true},
		{"fd00:0:0:1::1", "fd00:0:0:2::1", false},
	} {
		if same := shareOf(address(tc.a)) == shareOf(address(tc.b)); same != tc.same {
			t.Errorf("%s and %s: one source %v", tc.a, tc.b, same)
		}
	}
}

// TestGateAccounts: whatever happens, the counts are those of a naive list, and
// within the limits.
func TestGateAccounts(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	g, _ := gate(Limits{Connections: 40, Opening: 12})
	live := make(map[*Pass]bool) // opening
	for range 20000 {
		switch r.IntN(4) {
		case 0, 1:
			source := netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(r.IntN(12) + 1))})
			if p := g.Enter(source, &seen{}); p != nil {
				live[p] = true
			}
		case 2:
			for p := range live {
				p.Opened()
				live[p] = false
				break
			}
		default:
			for p := range live {
				p.Leave()
				delete(live, p)
				break
			}
		}
		for p := range live {
			if p.Ended() {
				delete(live, p)
			}
		}
		opening, heaviest, count := 0, 0, map[netip.Addr]int{}
		for p, o := range live {
			if o {
				opening++
			}
			count[p.source]++
			heaviest = max(heaviest, count[p.source])
		}
		if g.all.n != len(live) || g.opening.n != opening || g.all.n > 40 || g.opening.n > 12 || len(g.all.byCount) != heaviest ||
			len(g.all.sources) != len(count) {
			t.Fatalf("got %d with %d opening, the heaviest %d of %d sources; want %d, %d, %d, %d",
				g.all.n, g.opening.n, len(g.all.byCount), len(g.all.sources), len(live), opening, heaviest, len(count))
		}
	}
}

func TestDefaultLimits(t *testing.T) {
	if l := DefaultLimits(); l.Connections < fewest || l.Connections > most || l.Opening < fewOpening || l.Opening > l.Connections {
		t.Errorf("got %+v", l)
	}
}

func BenchmarkGateFull(b *testing.B) {
	g, _ := gate(Limits{Connections: 10000, Opening: 1000})
	c := &seen{}
	i := uint32(0)
	for b.Loop() {
		i++
		g.Enter(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), c)
	}
}

// TestListener: a gate before a server that knows nothing of it.
func TestListener(t *testing.T) {
	g, refused := gate(Limits{Connections: 2})
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := g.Listener(inner)
	defer l.Close()
	accepted := make(chan net.Conn, 4)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return nil // turned away before connect(2) returned
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	dial()
	dial()
	first, second := <-accepted, <-accepted
	if c := dial(); c != nil {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a third one is served")
		}
	}
	first.Close()
	dial()
	third := <-accepted
	second.Close()
	third.Close()
	g.mu.Lock()
	left := g.all.n
	g.mu.Unlock()
	if left != 0 || refused["connection_limit"] != 1 {
		t.Errorf("%d are left, refused %v", left, refused)
	}
}
