// Package hangup tells when the peer of a TCP connection ended its direction or
// is gone, without reading: a proxy that waits for an answer must notice that
// nobody waits for it any more, and what the client sent ahead is not to be
// taken from it.
//
// It owns that one question, for all connections of a process with one
// goroutine and one epoll instance. It does not own what follows from it.
package hangup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hauberk-mesh/hauberk/proxy/socket"
)

// Event is what happened to a peer.
type Event uint8

const (
	// Ended: the peer will send nothing more. It may still read.
	Ended Event = iota + 1
	// Gone: the connection was reset, or both directions have ended.
	Gone
)

// Watcher watches connections while Run runs. A nil Watcher watches nothing.
type Watcher struct {
	file *os.File // the epoll instance, on the runtime's poller
	fd   int

	mu      sync.Mutex
	last    uint64                 // guarded by mu
	watches map[uint64]func(Event) // guarded by mu
}

// New makes a watcher; Run ends it.
func New() (*Watcher, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll instance: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make epoll instance non-blocking: %w", err)
	}
	return &Watcher{file: os.NewFile(uintptr(fd), "epoll"), fd: fd, watches: make(map[uint64]func(Event))}, nil
}

// Watch calls f when something happens to the peer of c, from the goroutine of
// Run, so f must not block. The returned function ends that; f may be under way
// for the last time when it returns. It must be called before c is closed or
// soon after. Connections that are not TCP are not watched.
func (w *Watcher) Watch(c net.Conn, f func(Event)) (stop func()) {
	if w == nil {
		return func() {}
	}
	t, ok := socket.Raw(c).(*net.TCPConn)
	if !ok {
		return func() {}
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return func() {}
	}
	w.mu.Lock()
	w.last++
	id := w.last
	w.watches[id] = f
	w.mu.Unlock()
	// The identifier is not the descriptor: an event that was fetched before a
	// descriptor was closed must not meet the connection that has it now.
	event := unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(uint32(id)), Pad: int32(uint32(id >> 32))}
	// A connection that was closed meanwhile has nothing to tell.
	_ = raw.Control(func(fd uintptr) { _ = unix.EpollCtl(w.fd, unix.EPOLL_CTL_ADD, int(fd), &event) })
	return func() {
		w.mu.Lock()
		delete(w.watches, id)
		w.mu.Unlock()
		// Closing would take it off, too, but a tunnel lives on.
		_ = raw.Control(func(fd uintptr) { _ = unix.EpollCtl(w.fd, unix.EPOLL_CTL_DEL, int(fd), nil) })
	}
}

// Run tells of events until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	if w == nil {
		<-ctx.Done()
		return nil
	}
	stop := context.AfterFunc(ctx, func() { w.file.Close() })
	defer stop()
	raw, err := w.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch hang-ups: %w", err)
	}
	events := make([]unix.EpollEvent, 128)
	for {
		n := 0
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, failed = unix.EpollWait(int(fd), events, 0)
			return n > 0 || failed != nil && !errors.Is(failed, unix.EINTR)
		})
		if ctx.Err() != nil {
			return nil
		}
		if err := errors.Join(err, failed); err != nil {
			return fmt.Errorf("watch hang-ups: %w", err)
		}
		for _, e := range events[:n] {
			w.tell(e)
		}
	}
}

func (w *Watcher) tell(e unix.EpollEvent) {
	id := uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32
	w.mu.Lock()
	f := w.watches[id]
	w.mu.Unlock()
	switch {
	case f == nil:
	case e.Events&(unix.EPOLLHUP|unix.EPOLLERR) != 0:
		f(Gone)
	case e.Events&unix.EPOLLRDHUP != 0:
		f(Ended)
	}
}
