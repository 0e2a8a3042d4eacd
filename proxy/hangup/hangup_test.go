package hangup

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func running(t testing.TB) *Watcher {
	t.Helper()
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return w
}

// tcp is a connection of real sockets: the end that is watched, and its peer.
func tcp(t testing.TB) (watched, peer *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); p.Close() })
	return c.(*net.TCPConn), p.(*net.TCPConn)
}

func want(t testing.TB, events <-chan Event, e Event) {
	t.Helper()
	select {
	case got := <-events:
		if got != e {
			t.Fatalf("got event %d, want %d", got, e)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("event %d never came", e)
	}
}

func TestEvents(t *testing.T) {
	w := running(t)
	for _, tc := range []struct {
		name  string
		first string // what the peer sends ahead
		do    func(c *net.TCPConn) error
		want  Event
	}{
		{"half-close", "", (*net.TCPConn).CloseWrite, Ended},
		{"half-close behind unread bytes", "ahead", (*net.TCPConn).CloseWrite, Ended},
		{"close", "ahead", (*net.TCPConn).Close, Ended},
		{"reset", "", func(c *net.TCPConn) error { _ = c.SetLinger(0); return c.Close() }, Gone},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, peer := tcp(t)
			events := make(chan Event, 8)
			defer w.Watch(c, func(e Event) { events <- e })()
			if _, err := io.WriteString(peer, tc.first); err != nil {
				t.Fatal(err)
			}
			if err := tc.do(peer); err != nil {
				t.Fatal(err)
			}
			want(t, events, tc.want)
			got, err := io.ReadAll(c)
			if string(got) != tc.first || tc.want == Ended && err != nil {
				t.Errorf("what was sent ahead is %q, %v", got, err)
			}
		})
	}
}

// TestWrittenToAfterClose: a peer that closed is told from one that still reads
// by writing to it.
func TestWrittenToAfterClose(t *testing.T) {
	w := running(t)
	c, peer := tcp(t)
	events := make(chan Event, 8)
	defer w.Watch(c, func(e Event) { events <- e })()
	peer.Close()
	want(t, events, Ended)
	if _, err := io.WriteString(c, "anybody there?"); err != nil {
		t.Fatal(err)
	}
	want(t, events, Gone)
}

func TestBeforeAndAfter(t *testing.T) {
	w := running(t)
	c, peer := tcp(t)
	if err := peer.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	events := make(chan Event, 8)
	stop := w.Watch(c, func(e Event) { events <- e }) // the end came first
	want(t, events, Ended)
	stop()
	_ = peer.SetLinger(0)
	peer.Close()
	if _, err := io.ReadAll(c); err != nil {
		t.Log(err) // the reset has arrived
	}
	other, far := tcp(t) // its event comes after any of the first
	defer w.Watch(other, func(e Event) { events <- e + 100 })()
	if err := far.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	want(t, events, Ended+100)
	if len(w.watches) != 1 {
		t.Errorf("%d watches are left, want 1", len(w.watches))
	}
}

// TestNotWatched: what has no TCP underneath, and a nil Watcher.
func TestNotWatched(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	running(t).Watch(a, func(Event) { t.Error("told of a pipe") })()
	var none *Watcher
	none.Watch(a, func(Event) { t.Error("told by nobody") })()
}

func BenchmarkWatch(b *testing.B) {
	w := running(b)
	c, _ := tcp(b)
	b.ReportAllocs()
	for b.Loop() {
		w.Watch(c, func(Event) {})()
	}
}
