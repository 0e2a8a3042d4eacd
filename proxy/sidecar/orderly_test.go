package sidecar

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// TestOrderlyEndIsRetried: a sidecar that ended an idle connection as a request
// was on its way did not act on it, whatever its method: it is sent again. One
// that broke off may have acted on it.
func TestOrderlyEndIsRetried(t *testing.T) {
	for name, orderly := range map[string]bool{"orderly": true, "broken off": false} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, setup{app: "127.0.0.1:1", protocol: http1, serverProto: http1})
			config := identity.ServerTLS(p.authority.Workload(t, "bank", "server", serverUID), identity.WithALPN(names.ALPNHTTP1, names.ALPNTCP))
			var conns, posts atomic.Int64
			peer := tcpApp(t, func(raw net.Conn) {
				c := tls.Server(raw, config)
				br := bufio.NewReader(c)
				for first := conns.Add(1) == 1; ; {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					if r.Method == "POST" {
						posts.Add(1)
						if first {
							if orderly {
								c.Close()
							} else {
								_ = raw.(*net.TCPConn).SetLinger(0)
							}
							return
						}
					}
					fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}
			})
			at := netip.MustParseAddrPort(peer)
			for _, r := range p.clientRes {
				if d := r.GetDestination(); d != nil {
					d.Endpoints[0].Address, d.Endpoints[0].Port = at.Addr().String(), uint32(at.Port())
					r.Version = "2"
				}
			}
			p.clientFixed.Replace(p.clientRes)
			c := p.httpClient()
			p.eventually("the peer answers", func() bool {
				r, err := c.Get("http://server/")
				status, _ := body(t, r, err)
				return status == 200
			})
			r, err := c.Post("http://server/", "", nil)
			status, _ := body(t, r, err)
			want, wantPosts := 502, int64(1)
			if orderly {
				want, wantPosts = 200, 2
			}
			if status != want || posts.Load() != wantPosts {
				t.Errorf("status %d after %d requests, want %d after %d", status, posts.Load(), want, wantPosts)
			}
		})
	}
}
