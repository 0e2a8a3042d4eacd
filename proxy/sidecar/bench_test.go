package sidecar

import (
	"bytes"
	"io"
	"net"
	"testing"
)

// BenchmarkPair is a keep-alive request through both sidecars with mutual TLS,
// policy, metrics and trace context, to an application that does nothing: its
// allocations are the pair's.
func BenchmarkPair(b *testing.B) {
	request := []byte("GET /v2/keys/a HTTP/1.1\r\nHost: server\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	response := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n" + string(bytes.Repeat([]byte("x"), 1024)))
	app := tcpApp(b, func(c net.Conn) {
		buf := make([]byte, 4096)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			if _, err := c.Write(response); err != nil {
				return
			}
		}
	})
	p := newPair(b, setup{app: app, protocol: http1, serverProto: http1, quiet: true,
		ingress: tier(rule("no", deny, get([]string{"DELETE"}, "/")), rule("read", allow, get([]string{"GET"}, "/v2/keys")))})
	c := p.conn()
	_ = c.SetDeadline(noDeadline)
	buf := make([]byte, len(response)+4096)
	one := func() {
		if _, err := c.Write(request); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadAtLeast(c, buf, len(response)); err != nil {
			b.Fatal(err)
		}
	}
	one()
	b.ReportAllocs()
	for b.Loop() {
		one()
	}
}
