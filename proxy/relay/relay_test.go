package relay

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"testing"
)

// plain hides a TCP connection's type, as TLS does, so that bytes go through
// our buffers.
type plain struct{ net.Conn }

func (p plain) CloseWrite() error { return p.Conn.(*net.TCPConn).CloseWrite() }

func connected(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if far, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if near, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// TestRunKeepsBytes passes messages of all sizes around those of the buffers,
// in both directions, and asks for the same bytes in the same order.
func TestRunKeepsBytes(t *testing.T) {
	a, client := connected(t)
	b, server := connected(t)
	done := make(chan Result, 1)
	go func() { done <- Run(End{Conn: plain{a}, First: []byte("first")}, End{Conn: plain{b}}, nil, nil) }()
	sizes := []int{1, smallSize - 1, smallSize, smallSize + 1, largeSize, largeSize + 1, 5 * largeSize}
	for range 3 * smallReads {
		sizes = append(sizes, 10)
	}
	sizes = append(sizes, 3*smallSize, 1)
	var want []byte
	for _, n := range sizes {
		m := make([]byte, n)
		for i := range m {
			m[i] = byte(rand.Uint32())
		}
		want = append(want, m...)
	}
	echoed := make(chan error, 1)
	go func() {
		_, err := io.Copy(server, server)
		server.(*net.TCPConn).CloseWrite()
		echoed <- err
	}()
	go func() {
		rest := want
		for _, n := range sizes {
			if _, err := client.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
		}
		client.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(client)
	if err != nil {
		t.Fatal(err)
	}
	if want := append([]byte("first"), want...); !bytes.Equal(got, want) {
		t.Errorf("got %d bytes back, want the %d that were sent", len(got), len(want))
	}
	if err := <-echoed; err != nil {
		t.Fatal(err)
	}
	r := <-done
	if n := int64(len(want) + len("first")); r.FromA != n || r.FromB != n || r.ErrA != nil || r.ErrB != nil {
		t.Errorf("got %+v, want %d bytes each way without errors", r, n)
	}
}
