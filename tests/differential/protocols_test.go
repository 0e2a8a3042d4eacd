package differential

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// open dials the client's sidecar.
func (p *pair) open(t *testing.T) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", p.dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c, bufio.NewReader(c)
}

// TestMessages: each kind of message keeps its meaning on the way.
func TestMessages(t *testing.T) {
	needs(t)
	for _, b := range backends() {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			p := startPair(t, b, options{rules: allowed(), protocol: protocols["declared"]})
			answer := func(raw, method string) (*http.Response, string, error) {
				c, r := p.open(t)
				if _, err := io.WriteString(c, raw); err != nil {
					t.Fatal(err)
				}
				_ = c.(*net.TCPConn).CloseWrite()
				resp, err := http.ReadResponse(r, &http.Request{Method: method})
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				return resp, string(body), err
			}
			streams := b.name != "plain" && b.name != "nginx"
			if streams {
				resp, body, err := answer(get("/ok/chunks", ""), "GET")
				if err != nil || body != "one,two" || len(resp.TransferEncoding) != 1 {
					t.Errorf("chunks to HTTP/1.1: %q in %v, %v", body, resp.TransferEncoding, err)
				}
				resp, body, err = answer("GET /ok/chunks HTTP/1.0\r\nHost: x\r\n\r\n", "GET")
				if err != nil || body != "one,two" || len(resp.TransferEncoding) != 0 || !resp.Close {
					t.Errorf("chunks to HTTP/1.0: %q in %v, close %v, %v", body, resp.TransferEncoding, resp.Close, err)
				}
			}
			if b.name != "plain" {
				resp, body, err := answer(get("/ok/empty", ""), "GET")
				if err != nil || resp.StatusCode != 204 || body != "" || resp.Header.Get("Content-Length") != "" {
					t.Errorf("204: %d %q %v, %v", resp.StatusCode, body, resp.Header, err)
				}
			}
			resp, body, err := answer("HEAD /ok/a HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD")
			if err != nil || resp.StatusCode != 200 || body != "" {
				t.Errorf("HEAD: %d %q, %v", resp.StatusCode, body, err)
			}
			if want := int64(len("seen HEAD /ok/a\n")); resp.ContentLength != want && resp.ContentLength != -1 {
				t.Errorf("HEAD: length %d, want %d", resp.ContentLength, want)
			}
			// A client that waits hears that it may go on, from who reads the body.
			c, r := p.open(t)
			fmt.Fprint(c, "PUT /ok/b HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
			line, err := r.ReadString('\n')
			if err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") && b.name != "nginx" {
				t.Errorf("instead of 100 (Continue): %q, %v", line, err)
			}
			_, _ = io.WriteString(c, "hello")
			_ = c.(*net.TCPConn).CloseWrite()
			rest, err := io.ReadAll(r)
			if want := "seen PUT /ok/b\n"; err != nil || !strings.HasSuffix(string(rest), want) {
				t.Errorf("after 100: %q, %v, want %q at the end", rest, err, want)
			}
			p.fence(t)
		})
	}
}

// TestTunnels: what a back end accepts as Upgrade or CONNECT carries bytes both
// ways, what was sent early included, and each direction ends by itself; where
// policy does not name the method, nothing is asked of the back end.
func TestTunnels(t *testing.T) {
	needs(t)
	for _, b := range backends() {
		if !b.upgrades {
			continue
		}
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			rules := append(allowed(), requests([]string{"CONNECT"}))
			p := startPair(t, b, options{rules: rules, protocol: protocols["declared"]})
			for name, tc := range map[string]struct{ request, want string }{
				"upgrade": {get("/ok/ws", "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"),
					"HTTP/1.1 101 "},
				"CONNECT": {"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n", "HTTP/1.1 200 "},
			} {
				t.Run(name, func(t *testing.T) {
					c, r := p.open(t)
					const early = "early bytes that look like\r\n\r\nGET /secret HTTP/1.1\r\nHost: x\r\n\r\n"
					fmt.Fprint(c, tc.request+early)
					line, err := r.ReadString('\n')
					if err != nil || !strings.HasPrefix(line, tc.want) {
						t.Fatalf("answer %q, %v", line, err)
					}
					for line != "\r\n" {
						if line, err = r.ReadString('\n'); err != nil {
							t.Fatal(err)
						}
					}
					big := strings.Repeat("0123456789abcdef", 16<<10) // 256 KiB
					go func() {
						_, _ = io.WriteString(c, big)
						_ = c.(*net.TCPConn).CloseWrite()
					}()
					got, err := io.ReadAll(r)
					if err != nil || string(got) != early+big {
						t.Fatalf("the tunnel gave back %d bytes of %d, %v", len(got), len(early)+len(big), err)
					}
					o := p.fence(t)
					var seen []string
					for _, s := range o.sees {
						seen = append(seen, s.Method+" "+s.Target+" "+s.Upgrade)
					}
					want := map[string][]string{"upgrade": {"GET /ok/ws websocket"}, "CONNECT": {"CONNECT db:5432 "}}[name]
					if d := cmp.Diff(want, seen); d != "" {
						t.Error(d)
					}
				})
			}
		})
	}
}
