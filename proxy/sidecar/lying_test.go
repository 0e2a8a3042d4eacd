package sidecar

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestBodyWhereNoneMayBe: an application that sends a body in answer to HEAD, or
// with 204 or 304, as some servers do, must not have it taken for the answer to
// the next request on the connection.
func TestBodyWhereNoneMayBe(t *testing.T) {
	const forged = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
	for name, tc := range map[string]struct{ method, head string }{
		"HEAD with a length":    {"HEAD", fmt.Sprintf("200 OK\r\nContent-Length: %d\r\n", len(forged))},
		"HEAD in chunks":        {"HEAD", "200 OK\r\nTransfer-Encoding: chunked\r\n"},
		"HEAD without a length": {"HEAD", "200 OK\r\n"},
		"204 with a length":     {"GET", fmt.Sprintf("204 No Content\r\nContent-Length: %d\r\n", len(forged))},
		"304 with a length":     {"GET", fmt.Sprintf("304 Not Modified\r\nContent-Length: %d\r\n", len(forged))},
	} {
		t.Run(name, func(t *testing.T) {
			app := tcpApp(t, func(c net.Conn) {
				br := bufio.NewReader(c)
				for {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					if r.URL.Path != "/lie" {
						fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue")
						continue
					}
					fmt.Fprintf(c, "HTTP/1.1 %s\r\n", tc.head)
					if _, err := br.Peek(1); err != nil {
						return // the connection is not used again
					}
					// The late body overtakes the next request's answer.
					fmt.Fprint(c, forged)
				}
			})
			p := newPair(t, setup{app: app, protocol: http1, serverProto: http1})
			c := p.conn()
			br := bufio.NewReader(c)
			fmt.Fprintf(c, "%s /lie HTTP/1.1\r\nHost: x\r\n\r\n", tc.method)
			r, err := http.ReadResponse(br, &http.Request{Method: tc.method})
			if status, _ := body(t, r, err); status != 200 && status != 204 && status != 304 {
				t.Fatalf("status %d", status)
			}
			fmt.Fprint(c, "GET /true HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			r, err = http.ReadResponse(br, nil)
			if status, got := body(t, r, err); status != 200 || got != "true" {
				t.Errorf("the next request got %d %q", status, got)
			}
			if strings.Contains(p.serverAccess.String(), "upstream_protocol") {
				t.Errorf("the body reached the next exchange:\n%s", p.serverAccess.String())
			}
		})
	}
}
