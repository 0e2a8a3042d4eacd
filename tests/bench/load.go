package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// load is what the HTTP/1.1 generator does: keep-alive connections, either at a
// fixed rate that does not wait for answers (open loop), or as fast as answers
// come (rate 0).
type load struct {
	target   netip.AddrPort
	netns    string // named network namespace of the connections, "" for the own
	conns    int
	rate     float64
	warmup   time.Duration
	duration time.Duration
	// begin and end are called around the measured part.
	begin, end func()
}

// outcome is what was seen in the measured part.
type outcome struct {
	latency   histogram // from the intended time of sending to the answer's last byte
	completed int
	errors    int
	firstErr  error
	elapsed   time.Duration
}

// request is what an ordinary client sends.
var request = []byte("GET /api/items/42?page=1 HTTP/1.1\r\nHost: server.bench\r\nUser-Agent: bench/1\r\nAccept: application/json\r\n" +
	"Accept-Language: en\r\nX-Request-Id: 4fd0b618-1a2b-4c3d-9e8f-001122334455\r\nCookie: session=0123456789abcdef\r\n\r\n")

// client is one connection of the generator.
type client struct {
	fd       int
	busy     bool
	intended time.Time
	buf      []byte
}

// generator is one epoll loop on one thread: Go's own timers wake up to a
// millisecond late, which is more than what is measured.
type generator struct {
	load
	epoll, timer int
	clients      []*client
	idle         []*client
	byFD         map[int32]*client
	waiting      []time.Time // intended times for which no connection was free
	out          *outcome
	measuring    bool
}

// run generates load. It owns a thread, which ends with it when it is in
// another network namespace.
func (l load) run() (*outcome, error) {
	type result struct {
		out *outcome
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		if l.netns == "" {
			defer runtime.UnlockOSThread()
		} else if err := enterNamespace(l.netns); err != nil {
			done <- result{nil, err}
			return
		}
		out, err := l.loop()
		done <- result{out, err}
	}()
	r := <-done
	return r.out, r.err
}

func (l load) loop() (*outcome, error) {
	g := &generator{load: l, byFD: make(map[int32]*client), out: &outcome{}}
	var err error
	if g.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	defer unix.Close(g.epoll)
	if g.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("timerfd: %w", err)
	}
	defer unix.Close(g.timer)
	if err := g.watch(g.timer); err != nil {
		return nil, err
	}
	defer func() {
		for _, c := range g.clients {
			unix.Close(c.fd)
		}
	}()
	for range l.conns {
		c := &client{buf: make([]byte, 0, 16<<10)}
		if err := g.connect(c); err != nil {
			return nil, err
		}
		g.clients = append(g.clients, c)
		g.idle = append(g.idle, c)
	}
	return g.out, g.generate()
}

func (g *generator) watch(fd int) error {
	if err := unix.EpollCtl(g.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}

func (g *generator) connect(c *client) error {
	fd, err := dialFD(g.target)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return err
	}
	c.fd, c.buf, c.busy = fd, c.buf[:0], false
	g.byFD[int32(fd)] = c
	return g.watch(fd)
}

// dialFD connects in the network namespace of the thread.
func dialFD(target netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(target.Port()), Addr: target.Addr().As4()}); err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("connect to %s: %w", target, err)
	}
	return fd, nil
}

func (g *generator) generate() error {
	start := time.Now()
	from := start.Add(g.warmup)
	until := from.Add(g.duration)
	events := make([]unix.EpollEvent, 256)
	next := start
	step := time.Duration(0)
	if g.rate > 0 {
		step = time.Duration(float64(time.Second) / g.rate)
	} else {
		for len(g.idle) > 0 {
			g.send(start)
		}
		if err := g.arm(until); err != nil {
			return err
		}
	}
	for {
		now := time.Now()
		if !g.measuring && !now.Before(from) {
			g.measuring = true
			g.begin()
			from = time.Now()
		}
		if !now.Before(until) {
			g.end()
			g.out.elapsed = time.Since(from)
			if g.out.errors > 0 && g.out.completed == 0 {
				return fmt.Errorf("no request succeeded: %w", g.out.firstErr)
			}
			return nil
		}
		for step > 0 && !next.After(now) {
			if len(g.idle) > 0 {
				g.send(next)
			} else {
				g.waiting = append(g.waiting, next)
			}
			next = next.Add(step)
		}
		if step > 0 {
			if err := g.arm(next); err != nil {
				return err
			}
		}
		n, err := unix.EpollWait(g.epoll, events, int(max(time.Until(until).Milliseconds()+1, 1)))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("epoll: %w", err)
		}
		for _, e := range events[:max(n, 0)] {
			if int(e.Fd) == g.timer {
				var b [8]byte
				_, _ = unix.Read(g.timer, b[:])
			} else if c := g.byFD[e.Fd]; c != nil {
				g.receive(c)
			}
		}
	}
}

func (g *generator) arm(at time.Time) error {
	d := max(time.Until(at), time.Nanosecond)
	spec := &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	if err := unix.TimerfdSettime(g.timer, 0, spec, nil); err != nil {
		return fmt.Errorf("timerfd: %w", err)
	}
	return nil
}

// send puts a request on the connection that has been idle the longest.
func (g *generator) send(intended time.Time) {
	c := g.idle[0]
	g.idle = append(g.idle[:0], g.idle[1:]...)
	c.busy, c.intended = true, intended
	n, err := unix.Write(c.fd, request)
	if err == nil && n < len(request) {
		err = errors.New("the request did not fit the socket's buffer")
	}
	if err != nil {
		g.failed(c, err)
	}
}

func (g *generator) receive(c *client) {
	n, err := unix.Read(c.fd, c.buf[len(c.buf):cap(c.buf)])
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return
	case err == nil && n == 0:
		err = errors.New("the connection was closed")
	}
	if err != nil {
		g.failed(c, err)
		return
	}
	c.buf = c.buf[:len(c.buf)+n]
	whole, err := responseComplete(c.buf)
	if err != nil {
		g.failed(c, err)
		return
	}
	if !whole {
		return
	}
	c.buf = c.buf[:0]
	if g.measuring {
		g.out.completed++
		g.out.latency.record(time.Since(c.intended))
	}
	g.free(c)
}

// free gives the connection the next request, if one is due.
func (g *generator) free(c *client) {
	c.busy = false
	g.idle = append(g.idle, c)
	switch {
	case g.rate == 0:
		g.send(time.Now())
	case len(g.waiting) > 0:
		at := g.waiting[0]
		g.waiting = g.waiting[1:]
		g.send(at)
	}
}

func (g *generator) failed(c *client, err error) {
	if g.measuring {
		g.out.errors++
	}
	if g.out.firstErr == nil {
		g.out.firstErr = err
	}
	delete(g.byFD, int32(c.fd))
	unix.Close(c.fd)
	busy := c.busy
	if err := g.connect(c); err != nil {
		// Nobody listens any more: the connection stays out of use.
		c.fd = -1
		return
	}
	if busy && g.out.errors < 10_000 {
		g.free(c)
	}
}

var (
	statusOK      = []byte("HTTP/1.1 200 ")
	headEnd       = []byte("\r\n\r\n")
	contentLength = []byte("\r\ncontent-length: ")
)

// responseComplete reports whether b is one whole answer; anything else than
// 200 with a Content-Length is an error.
func responseComplete(b []byte) (bool, error) {
	end := bytes.Index(b, headEnd)
	if end < 0 {
		return false, nil
	}
	if !bytes.HasPrefix(b, statusOK) {
		line, _, _ := bytes.Cut(b, headEnd[:2])
		return false, fmt.Errorf("answer %q", line)
	}
	at := bytes.Index(b[:end], []byte("\r\nContent-Length: "))
	if at < 0 {
		at = bytes.Index(b[:end], contentLength)
	}
	if at < 0 {
		return false, errors.New("an answer without Content-Length")
	}
	digits, _, _ := bytes.Cut(b[at+len(contentLength):], headEnd[:2])
	length, err := strconv.Atoi(string(digits))
	if err != nil {
		return false, fmt.Errorf("content-length: %w", err)
	}
	switch got := len(b) - end - len(headEnd); {
	case got < length:
		return false, nil
	case got > length:
		return false, errors.New("bytes after the answer")
	}
	return true, nil
}
