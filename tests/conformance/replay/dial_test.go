package replay

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a connection that is denied is watched.
const patience = 300 * time.Millisecond

// dial tries connections at once from the calling thread's network namespace,
// which goroutines would leave, and tells which were answered.
func dial(connections []connection, ips map[string]string) ([]bool, error) {
	polls := make([]unix.PollFd, len(connections))
	for i := range polls {
		polls[i].Fd = -1
	}
	defer func() {
		for _, p := range polls {
			if p.Fd >= 0 {
				_ = unix.Close(int(p.Fd)) // nothing is written any more
			}
		}
	}()
	waiting := 0
	for i, c := range connections {
		fd, events, err := open(c, ips[c.to])
		if err != nil {
			return nil, fmt.Errorf("%+v: %w", c, err)
		}
		polls[i], waiting = unix.PollFd{Fd: int32(fd), Events: events}, waiting+1
	}
	reached := make([]bool, len(connections))
	for deadline := time.Now().Add(patience); waiting > 0; {
		left := time.Until(deadline).Milliseconds()
		if left <= 0 {
			break
		}
		if _, err := unix.Poll(polls, int(left)); err != nil && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("poll: %w", err)
		}
		for i := range polls {
			if p := &polls[i]; p.Fd >= 0 && p.Revents != 0 {
				reached[i] = answered(int(p.Fd), connections[i].network)
				if err := unix.Close(int(p.Fd)); err != nil {
					return nil, err
				}
				p.Fd, waiting = -1, waiting-1
			}
		}
	}
	return reached, nil
}

// open begins a connection and returns what to poll for.
func open(c connection, ip string) (fd int, events int16, err error) {
	address, err := netip.ParseAddr(ip)
	if err != nil {
		return -1, 0, err
	}
	kind, events := unix.SOCK_STREAM, int16(unix.POLLOUT)
	if c.network == "udp" {
		kind, events = unix.SOCK_DGRAM, unix.POLLIN
	}
	if fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, 0, err
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: c.port, Addr: address.As4()})
	if errors.Is(err, unix.EINPROGRESS) {
		err = nil
	}
	if err == nil && c.network == "udp" {
		// A datagram that egress drops is an error at once; poll tells it too.
		if _, err = unix.Write(fd, []byte("hello")); errors.Is(err, unix.EPERM) {
			err = nil
		}
	}
	if err != nil {
		return -1, 0, errors.Join(err, unix.Close(fd))
	}
	return fd, events, nil
}

func answered(fd int, network string) bool {
	if network == "udp" {
		n, err := unix.Read(fd, make([]byte, 64))
		return err == nil && n > 0
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	return err == nil && code == 0
}
