package sidecar

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// waiting is an application that answers /wait when it is told to, and says
// when a request came and when its client was gone.
type waiting struct {
	came, gone, release chan struct{}
	stream              bool // the head and some bytes go out at once
	early               bool // it says that a request came before it reads the body
}

func newWaiting() *waiting {
	return &waiting{came: make(chan struct{}, 8), gone: make(chan struct{}, 8), release: make(chan struct{})}
}

func (a *waiting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/wait" {
		fmt.Fprint(w, r.URL.Path)
		return
	}
	if a.early {
		a.came <- struct{}{}
	}
	_, _ = io.Copy(io.Discard, r.Body) // net/http looks for the end only behind the body
	if a.stream {
		fmt.Fprint(w, "begun")
		_ = http.NewResponseController(w).Flush()
	}
	if !a.early {
		a.came <- struct{}{}
	}
	select {
	case <-a.release:
		fmt.Fprint(w, "answer")
	case <-r.Context().Done():
		a.gone <- struct{}{}
	}
}

func receive(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: not within 20 s", what)
	}
}

// TestVanishedClient: what an application does for a client that is gone is
// cancelled, through both sidecars.
func TestVanishedClient(t *testing.T) {
	const request = "GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"
	finish := func(c *net.TCPConn) { c.Close() }
	reset := func(c *net.TCPConn) { _ = c.SetLinger(0); c.Close() }
	for _, tc := range []struct {
		name    string
		send    string
		end     func(*net.TCPConn)
		stream  bool
		inbound bool // straight to the server's sidecar, in plaintext
	}{
		{name: "close", send: request, end: finish},
		{name: "reset", send: request, end: reset},
		{name: "close behind a pipelined request", send: request + "GET /next HTTP/1.1\r\nHost: x\r\n\r\n", end: finish},
		{name: "close behind a body", send: "POST /wait HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", end: finish},
		{name: "reset of HTTP/1.0", send: "GET /wait HTTP/1.0\r\n\r\n", end: reset},
		{name: "reset during a response", send: request, end: reset, stream: true},
		{name: "close, without a sidecar", send: request, end: finish, inbound: true},
		{name: "reset, without a sidecar", send: request, end: reset, inbound: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			app := newWaiting()
			app.stream = tc.stream
			p := newPair(t, setup{app: httpApp(t, app), protocol: http1, serverProto: http1})
			address := p.dial
			if tc.inbound {
				address = p.inbound
			}
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fmt.Fprint(c, tc.send)
			receive(t, "request", app.came)
			if tc.stream {
				if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
					t.Fatal(err)
				}
			}
			tc.end(c.(*net.TCPConn))
			receive(t, "cancelled", app.gone)
			side := p.clientAccess
			if tc.inbound {
				side = p.serverAccess
			}
			p.eventually("access log", func() bool { return strings.Contains(side.String(), `"flag":"client_gone"`) })
			p.eventually("no connection", func() bool { return p.client.Connections.Len() == 0 })
		})
	}
}

// TestCloseBehindStreamedBody: the end of the client comes while its body is
// still on its way.
func TestCloseBehindStreamedBody(t *testing.T) {
	app := newWaiting()
	app.early = true
	p := newPair(t, setup{app: httpApp(t, app), protocol: http1, serverProto: http1})
	c, err := net.Dial("tcp", p.dial)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "POST /wait HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
	receive(t, "request", app.came)
	fmt.Fprint(c, "3\r\nabc\r\n0\r\n\r\n")
	c.Close()
	receive(t, "cancelled", app.gone)
}

// TestHalfClosedClient: who only says that it will ask nothing more still gets
// every answer.
func TestHalfClosedClient(t *testing.T) {
	for _, version := range []string{"1.0", "1.1"} {
		for _, inbound := range []bool{false, true} {
			t.Run(fmt.Sprintf("HTTP/%s, inbound %v", version, inbound), func(t *testing.T) {
				app := newWaiting()
				p := newPair(t, setup{app: httpApp(t, app), protocol: http1, serverProto: http1})
				address := p.dial
				if inbound {
					address = p.inbound
				}
				c, err := net.Dial("tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				fmt.Fprintf(c, "GET /wait HTTP/%s\r\nHost: x\r\n\r\n", version)
				if version == "1.1" {
					fmt.Fprint(c, "GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
				}
				receive(t, "request", app.came)
				_ = c.(*net.TCPConn).CloseWrite()
				br := bufio.NewReader(c)
				if version == "1.1" {
					// The question whether anybody reads has arrived here.
					line, err := br.ReadString('\n')
					if err != nil || line != "HTTP/1.1 100 Continue\r\n" {
						t.Fatalf("got %q, %v", line, err)
					}
					_, _ = br.ReadString('\n')
				}
				close(app.release)
				resp, err := http.ReadResponse(br, nil)
				if status, got := body(t, resp, err); status != 200 || got != "answer" {
					t.Errorf("got %d %q", status, got)
				}
				if version == "1.1" {
					resp, err := http.ReadResponse(br, nil)
					if status, got := body(t, resp, err); status != 200 || got != "/next" {
						t.Errorf("pipelined: got %d %q", status, got)
					}
				}
				if b, err := io.ReadAll(br); len(b) > 0 || err != nil {
					t.Errorf("left: %q, %v", b, err)
				}
				select {
				case <-app.gone:
					t.Error("the application was told that its client is gone")
				default:
				}
			})
		}
	}
}

// TestCancelledRequestLeavesPoolUsable: requests of others, before and after,
// are untouched by one that is cancelled.
func TestCancelledRequestLeavesPoolUsable(t *testing.T) {
	app := newWaiting()
	p := newPair(t, setup{app: httpApp(t, app), protocol: http1, serverProto: http1})
	client := p.httpClient()
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := http.NewRequestWithContext(ctx, "GET", "http://server/wait", nil)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			resp, err := client.Do(r)
			if err == nil {
				resp.Body.Close()
			}
			done <- err
		}()
		receive(t, "request", app.came)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		resp, err := client.Get("http://server/other")
		if status, got := body(t, resp, err); status != 200 || got != "/other" {
			t.Fatalf("got %d %q", status, got)
		}
		receive(t, "cancelled", app.gone)
	}
}

// TestResetBehindResponse: a client that is gone as soon as it has its answer
// leaves connections to others as they were.
func TestResetBehindResponse(t *testing.T) {
	p := newPair(t, setup{app: httpApp(t, newWaiting()), protocol: http1, serverProto: http1, quiet: true})
	for range 300 {
		c, err := net.Dial("tcp", p.dial)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprint(c, "GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if status, got := body(t, resp, err); status != 200 || got != "/next" {
			t.Fatalf("got %d %q", status, got)
		}
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}
