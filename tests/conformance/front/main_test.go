package main

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A server on a raw socket answers its own port and no other.
func TestHandshake(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("raw sockets need root: the SCTP handshake is not tested")
	}
	if kernelHasSCTP() {
		t.Skip("the kernel has SCTP and answers itself: the stand-in is not used here")
	}
	ctx, cancel := context.WithCancel(t.Context())
	conn, err := (&net.ListenConfig{}).ListenPacket(ctx, "ip4:132", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- answer(conn, map[uint16]bool{9003: true}) }()
	if err := (dial{address: "127.0.0.1:9003", timeout: 5 * time.Second}).connect(ctx); err != nil {
		t.Errorf("the served port: %v", err)
	}
	if err := (dial{address: "127.0.0.1:9004", timeout: 300 * time.Millisecond}).connect(ctx); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("another port: %v, want a timeout", err)
	}
	cancel()
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the server ended with %v", err)
	}
}

func TestPacket(t *testing.T) {
	b := initPacket(1000, 9003, 77)
	got, ok := read(b)
	want := packet{from: 1000, to: 9003, kind: initChunk, tag: 77}
	if !ok || got != want {
		t.Errorf("INIT reads as %+v, %v; want %+v", got, ok, want)
	}
	ack, ok := read(ackPacket(got))
	if !ok || ack.kind != initAck || ack.from != 9003 || ack.to != 1000 || ack.verification != 77 {
		t.Errorf("INIT ACK reads as %+v, %v", ack, ok)
	}
	for i := range b {
		broken := append([]byte{}, b...)
		broken[i] ^= 1
		if _, ok := read(broken); ok {
			t.Errorf("byte %d may change", i)
		}
	}
	if _, ok := read(b[:len(b)-1]); ok {
		t.Error("a packet that ends early is taken")
	}
}

func TestArguments(t *testing.T) {
	got, err := parse([]string{"--timeout=3s", "--protocol=sctp", "10.0.0.1:9003"})
	if want := (dial{"sctp", "10.0.0.1:9003", 3 * time.Second}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if _, err := parse([]string{"--timeout=soon"}); err == nil {
		t.Error("a timeout that is none is taken")
	}
	ports, err := served([]string{"PATH=/", "SERVE_SCTP_PORT_9003=foo", "SERVE_SCTP_PORT_9005=foo", "SERVE_PORT_80=x"})
	if diff := cmp.Diff(map[uint16]bool{9003: true, 9005: true}, ports); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if _, err := served([]string{"SERVE_SCTP_PORT_x=foo"}); err == nil {
		t.Error("a port that is none is taken")
	}
}
