package sidecar

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hauberk-mesh/hauberk/proxy/connections"
)

// from dials an address with another source.
func from(t *testing.T, source, address string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	c, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func ask(c net.Conn) error {
	if _, err := fmt.Fprint(c, "GET /x HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != 200 {
		return fmt.Errorf("status %d", r.StatusCode)
	}
	return nil
}

// TestFloodStarvesNobodyElse: one source opens far more connections than the
// sidecar admits, in each way of being idle, and another is served all the time.
func TestFloodStarvesNobodyElse(t *testing.T) {
	const open, opening, flood = 48, 12, 300
	for _, tc := range []struct {
		name, send string
		reason     string
		answered   bool
		atMost     int
	}{
		{"silent", "", "opening_limit", false, opening + 1},
		{"half a ClientHello", "\x16\x03\x01\x02\x00\x01\x00", "opening_limit", false, opening + 1},
		{"with a request each", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "connection_limit", true, open},
	} {
		t.Run(tc.name, func(t *testing.T) {
			app := httpApp(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			p := newPair(t, setup{app: app, protocol: http1, serverProto: http1, limits: connections.Limits{Connections: open, Opening: opening}})
			steady := from(t, "127.0.0.3", p.inbound)
			if err := ask(steady); err != nil {
				t.Fatal(err)
			}
			for range flood {
				c, err := net.Dial("tcp", p.inbound) // from 127.0.0.1
				if errors.Is(err, syscall.ECONNRESET) {
					continue // turned away before connect(2) returned
				}
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				_, _ = fmt.Fprint(c, tc.send)
				if tc.answered {
					_, _ = c.Read(make([]byte, 1))
				}
			}
			p.eventually("bounded", func() bool { return p.server.Connections.Len() <= tc.atMost })
			for i := range 10 {
				if err := ask(from(t, "127.0.0.2", p.inbound)); err != nil {
					t.Errorf("connection %d of another source: %v", i, err)
				}
			}
			if err := ask(steady); err != nil {
				t.Errorf("connection from before the flood: %v", err)
			}
			families, err := p.server.Registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			counted := 0.0
			for _, f := range families {
				if f.GetName() != "hauberk_connections_refused_total" {
					continue
				}
				for _, m := range f.GetMetric() {
					for _, l := range m.GetLabel() {
						if l.GetValue() == tc.reason {
							counted += m.GetCounter().GetValue()
						}
					}
				}
			}
			if counted < flood-open-10 {
				t.Errorf("%v were counted as %s", counted, tc.reason)
			}
			if n := strings.Count(p.log.String(), "turned away"); n < 1 || n > 10 {
				t.Errorf("%d lines tell of %v connections", n, counted)
			}
		})
	}
}
