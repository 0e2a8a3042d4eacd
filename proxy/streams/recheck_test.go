package streams

import (
	"context"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hauberk-mesh/hauberk/proxy/exchange"
	"github.com/hauberk-mesh/hauberk/proxy/http2"
)

// slow is a Handler and its only Request: allowed until policy changes, and on
// its way only once release is closed.
type slow struct {
	pool                *http2.Pool
	connecting, release chan struct{}
	denied              atomic.Bool
}

func (s *slow) Request() Request                  { return s }
func (s *slow) Bad(time.Time, int, error)         {}
func (s *slow) Admit(*Exchange) *exchange.Refusal { return nil }
func (s *slow) Try(*Exchange) *http2.Stream       { return nil }
func (s *slow) Release(*Exchange)                 {}
func (s *slow) Fields(*Exchange, http2.Writer)    {}
func (s *slow) Done(*Exchange)                    {}
func (s *slow) Connect(ctx context.Context, _ *Exchange, _ int) (*http2.Stream, error) {
	close(s.connecting)
	<-s.release
	up, _, err := s.pool.Take(ctx)
	return up, err
}

func (s *slow) Recheck(*Exchange, *http2.Stream) *exchange.Refusal {
	if s.denied.Load() {
		return &exchange.Refusal{Status: 403, Flag: exchange.FlagDenied, Text: "denied"}
	}
	return nil
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// A change of policy while the upstream is dialled counts, whichever way it went.
func TestChangeWhileConnecting(t *testing.T) {
	for name, want := range map[string]int{"still allowed": 200, "denied": 403} {
		t.Run(name, func(t *testing.T) {
			var reached atomic.Int64
			app := &http.Server{Protocols: new(http.Protocols), ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) })}
			app.Protocols.SetUnencryptedHTTP2(true)
			behind, front := listen(t), listen(t)
			go func() { _ = app.Serve(behind) }()
			t.Cleanup(func() { app.Close() })

			timeouts := exchange.Timeouts{Idle: time.Minute, Head: time.Minute, Body: time.Minute, Response: time.Minute, Write: time.Minute}
			h := &slow{connecting: make(chan struct{}), release: make(chan struct{})}
			h.pool = http2.NewPool(http2.Options{Limits: http2.DefaultLimits, Timeouts: ConnTimeouts(timeouts)}, func(ctx context.Context) (net.Conn, time.Time, error) {
				c, err := new(net.Dialer).DialContext(ctx, "tcp", behind.Addr().String())
				return c, time.Time{}, err
			})
			t.Cleanup(h.pool.Abort)
			served := make(chan *Conn, 1)
			go func() {
				c, err := front.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				_ = Serve(t.Context(), c, nil, h, &Options{Timeouts: timeouts, DefaultAuthority: "app"}, func(c *Conn) { served <- c })
			}()

			transport := &http.Transport{Protocols: new(http.Protocols)}
			transport.Protocols.SetUnencryptedHTTP2(true)
			t.Cleanup(transport.CloseIdleConnections)
			status := make(chan int, 1)
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+front.Addr().String(), nil)
				if err != nil {
					t.Error(err)
				}
				response, err := (&http.Client{Transport: transport}).Do(r)
				if err != nil {
					t.Error(err)
					status <- 0
					return
				}
				response.Body.Close()
				status <- response.StatusCode
			}()
			conn := <-served
			<-h.connecting
			h.denied.Store(want == http.StatusForbidden)
			conn.Recheck()
			close(h.release)
			if got := <-status; got != want {
				t.Errorf("status %d, want %d", got, want)
			}
			if n := reached.Load(); n != 0 && want != http.StatusOK {
				t.Errorf("%d denied requests reached the application", n)
			}
		})
	}
}
