package socket

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// command runs a program that sets up the test's own network namespace.
func command(t *testing.T, args string) {
	t.Helper()
	list := strings.Fields(args)
	if out, err := exec.Command(list[0], list[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", args, err, out)
	}
}

// neighbour is a network namespace behind a link of its own, with a listener.
func neighbour(t *testing.T) net.Listener {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("left out: that a peer which vanished is noticed needs a network namespace, hence root")
	}
	command(t, "ip netns add hauberk-watch")
	t.Cleanup(func() { command(t, "ip netns del hauberk-watch") })
	command(t, "ip link add hbkwatch type veth peer name eth0 netns hauberk-watch")
	// At once: with its namespace it would go some time later.
	t.Cleanup(func() { command(t, "ip link del hbkwatch") })
	command(t, "ip addr add 198.51.100.201/30 dev hbkwatch")
	command(t, "ip link set hbkwatch up")
	command(t, "ip -n hauberk-watch addr add 198.51.100.202/30 dev eth0")
	command(t, "ip -n hauberk-watch link set eth0 up")
	type result struct {
		l   net.Listener
		err error
	}
	got := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromName("hauberk-watch")
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		var l net.Listener
		if err == nil {
			l, err = net.Listen("tcp", "198.51.100.202:80")
		}
		got <- result{l, err}
	}()
	r := <-got
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { r.l.Close() })
	return r.l
}

// TestWatch: a peer that vanished while something was under way to it is
// noticed; one that has no room for the time being is not taken for it, and one
// to whom nothing is under way is let be.
func TestWatch(t *testing.T) {
	l := neighbour(t)
	w := NewWatch()
	w.every, w.limit = 50*time.Millisecond, 500*time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	defer func() { cancel(); <-done }()
	dial := w.Dial(Dialer(5 * time.Second).DialContext)
	open := func() (near, far net.Conn) {
		t.Helper()
		near, err := dial(t.Context(), "tcp", "198.51.100.202:80")
		if err != nil {
			t.Fatal(err)
		}
		far, err = l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { near.Close(); far.Close() })
		return near, far
	}

	const size = 8 << 20
	full, reader := open()
	written := make(chan error, 1)
	go func() {
		_, err := full.Write(make([]byte, size))
		written <- err
		_ = CloseWrite(full)
	}()
	vanished, _ := open()
	idle, _ := open()

	// The reader has no room for several times the limit, and is alive.
	time.Sleep(6 * w.limit)
	if n, err := io.Copy(io.Discard, reader); err != nil || n != size {
		t.Fatalf("the one that paused got %d bytes of %d, %v", n, size, err)
	}
	if err := <-written; err != nil {
		t.Fatalf("sent to one that paused: %v", err)
	}

	command(t, "ip link set hbkwatch down")
	if _, err := vanished.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	_ = vanished.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := vanished.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the one that vanished: %v", err)
	}
	_ = idle.SetReadDeadline(time.Now())
	if _, err := idle.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the one to whom nothing is under way: %v", err)
	}

	idle.Close()
	full.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(w.every) {
		w.mu.Lock()
		left := len(w.conns)
		w.mu.Unlock()
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d closed connections are still watched", left)
		}
	}
}
