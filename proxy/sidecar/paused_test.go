package sidecar

import (
	"io"
	"net"
	"testing"
	"time"
)

// TestPausedReader: a peer that answers but reads nothing for a while is alive,
// however long it takes: a paused consumer gets the rest when it goes on.
func TestPausedReader(t *testing.T) {
	if testing.Short() {
		t.Skip("left out of -short: it takes half a minute; make test-packet has it")
	}
	t.Parallel()
	const size, pause = 16 << 20, 27 * time.Second
	resume := make(chan struct{})
	time.AfterFunc(pause, func() { close(resume) })
	app := tcpApp(t, func(c net.Conn) {
		kind := make([]byte, 1)
		if _, err := io.ReadFull(c, kind); err != nil {
			return
		}
		if kind[0] == 'u' {
			<-resume
			n, err := io.Copy(io.Discard, c)
			if err != nil || n != size {
				t.Errorf("the application that paused got %d bytes, %v", n, err)
			}
			return
		}
		if n, err := c.Write(make([]byte, size)); err != nil {
			t.Errorf("the application could send %d bytes, %v", n, err)
		}
	})
	p := newPair(t, setup{app: app, protocol: tcp, serverProto: tcp})
	up, down := p.conn(), p.conn()
	_ = up.SetDeadline(noDeadline)
	_ = down.SetDeadline(noDeadline)
	sent := make(chan error, 1)
	go func() {
		_, err := up.Write(append([]byte("u"), make([]byte, size)...))
		_ = up.(*net.TCPConn).CloseWrite()
		sent <- err
	}()
	if _, err := down.Write([]byte("d")); err != nil {
		t.Fatal(err)
	}
	<-resume
	if n, err := io.Copy(io.Discard, down); err != nil || n != size {
		t.Errorf("the client that paused got %d bytes, %v", n, err)
	}
	if err := <-sent; err != nil {
		t.Errorf("sent to an application that paused: %v", err)
	}
	if n, err := io.Copy(io.Discard, up); err != nil || n != 0 {
		t.Errorf("behind the upload: %d bytes, %v", n, err)
	}
}
