package connections

import (
	"errors"
	"log/slog"
	"net"
	"testing"
)

// A change between the verdict on a connection and OnRecheck counts.
func TestRecheckBeforeItIsSet(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	denied := errors.New("denied")
	for name, want := range map[string]error{"denied": denied, "allowed": nil} {
		var r Registry
		l := r.Add("inbound", near, "app")
		if err := l.OnRecheck(func() error { t.Errorf("%s: judged without a change", name); return nil }); err != nil {
			t.Errorf("%s: before any change: %v", name, err)
		}
		l.recheck.Store(nil) // not judged by anything yet
		r.Recheck(slog.New(slog.DiscardHandler))
		if err := l.OnRecheck(func() error { return want }); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}
