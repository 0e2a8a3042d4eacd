package main

import (
	"net"
	"strings"
	"testing"
)

func TestAll(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	go func() { // ends when the socket closes
		buffer := make([]byte, 64)
		for {
			n, from, err := udp.ReadFrom(buffer)
			if err != nil {
				return
			}
			if _, err := udp.WriteTo(buffer[:n], from); err != nil {
				return
			}
		}
	}()
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := closed.Addr().(*net.TCPAddr).Port
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}

	requests := []request{
		{Key: "tcp", Protocol: "TCP", Host: "127.0.0.1", Port: tcp.Addr().(*net.TCPAddr).Port},
		{Key: "udp", Protocol: "UDP", Host: "127.0.0.1", Port: udp.LocalAddr().(*net.UDPAddr).Port},
		{Key: "refused", Protocol: "TCP", Host: "127.0.0.1", Port: refused},
		{Key: "silent", Protocol: "UDP", Host: "127.0.0.1", Port: silent.LocalAddr().(*net.UDPAddr).Port},
		{Key: "protocol", Protocol: "SCTP", Host: "127.0.0.1", Port: 1},
	}
	wants := []string{"", "", "refused", "timeout", "unknown network"}
	for i, got := range all(t.Context(), requests) {
		if got.Request != requests[i] {
			t.Errorf("result %d is of %+v and not of %+v", i, got.Request, requests[i])
		}
		if want := wants[i]; want == "" && got.Error != "" || !strings.Contains(got.Error, want) {
			t.Errorf("%s: error %q, want %q", got.Request.Key, got.Error, want)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"--jobs"}, {"--jobs", "{"}, {"--tasks", "{}"}} {
		if err := run(t.Context(), args); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}
