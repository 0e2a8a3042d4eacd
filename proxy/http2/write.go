package http2

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// credit is n bytes of s that were passed on.
type credit struct {
	s *Stream
	n int
}

// Flush writes what is unsent, now if the kernel takes it for certain, in a
// goroutine if not. It does not block.
func (c *Conn) Flush() {
	c.mu.Lock()
	if c.writing || len(c.out) == 0 || c.err != nil {
		c.mu.Unlock()
		return
	}
	c.writing = true
	if !c.fits(len(c.out)) {
		c.mu.Unlock()
		go c.write()
		return
	}
	c.mu.Unlock()
	c.writeOnce()
	c.mu.Lock()
	if len(c.out) > 0 && c.err == nil {
		c.mu.Unlock()
		go c.write()
		return
	}
	c.rest()
	c.mu.Unlock()
}

// rest ends the writer's part; mu is held.
func (c *Conn) rest() {
	c.writing = false
	c.quiet.Broadcast()
}

// lastWrite writes what is left, and b after it, before the connection ends.
func (c *Conn) lastWrite(b []byte) {
	c.mu.Lock()
	for c.writing {
		c.quiet.Wait() // not for longer than a write may take
	}
	c.writing = true
	out := append(c.out, b...)
	c.out = nil
	c.mu.Unlock()
	if len(out) > 0 {
		_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = c.nc.Write(out) // an end that can't be told is an end
	}
	c.mu.Lock()
	c.rest()
	c.mu.Unlock()
}

// fits reports whether n bytes can be written without waiting for the peer: into
// an empty queue, with room for what the kernel keeps beside each of them when
// the peer's window is so small that it cuts them into small pieces.
func (c *Conn) fits(n int) bool {
	if c.raw == nil || n > inlineBytes {
		return false
	}
	c.memory = [memInfo]uint32{memQueued: 1}
	return c.raw.Control(c.ask) == nil && c.memory[memQueued] == 0 && int(c.memory[memLimit]) >= 4*n
}

// Of the words of SO_MEMINFO (linux/sock_diag.h).
const (
	memLimit  = 3 // SK_MEMINFO_SNDBUF
	memQueued = 5 // SK_MEMINFO_WMEM_QUEUED
	memInfo   = 9
)

// askMemory finds out what the kernel holds of the socket's output; mu is held.
func (c *Conn) askMemory(fd uintptr) {
	size := uint32(unsafe.Sizeof(c.memory))
	// The system call itself: there is no wrapper, and another would allocate.
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&c.memory)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		c.memory[memQueued] = 1
	}
}

// write writes until nothing is left. The caller has set c.writing.
func (c *Conn) write() {
	for {
		c.writeOnce()
		c.mu.Lock()
		if len(c.out) == 0 || c.err != nil {
			c.rest()
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
	}
}

// writeOnce writes what is there and then lets waiting bodies follow.
func (c *Conn) writeOnce() {
	now := time.Now()
	c.mu.Lock()
	b := c.out
	c.out, c.spare = c.spare[:0], nil
	within := c.options.Timeouts.Write
	by := now.Add(within)
	if early := by.Sub(c.writeBy); early < 0 || early >= within/4 {
		c.writeBy = by
		_ = c.nc.SetWriteDeadline(by)
	}
	c.mu.Unlock()
	_, err := c.nc.Write(b)
	var space [8]credit
	credits := space[:0]
	c.mu.Lock()
	if cap(b) <= smallRead || cap(b) <= 2*unsentData && len(c.streams) > 0 {
		c.spare = b[:0]
	}
	if err == nil {
		credits = c.pump(credits)
	}
	c.mu.Unlock()
	give(credits)
	if err != nil {
		c.fail(err)
	}
}

func give(credits []credit) {
	for _, g := range credits {
		g.s.credit(g.n)
	}
}

// pump moves waiting bodies into the buffer, a frame a stream in turn, as far
// as windows allow; mu is held.
func (c *Conn) pump(credits []credit) []credit {
	for len(c.ready) > 0 && c.sendWindow > 0 && len(c.out) < unsentData {
		s := c.ready[0]
		c.ready[0] = nil
		c.ready = c.ready[1:]
		s.inReady = false
		if s.closed {
			continue
		}
		p := s.pending[s.taken:]
		n := s.frame(p[:min(len(p), c.peerFrame)], s.pendingEnd && s.trailer == nil && len(p) <= c.peerFrame)
		s.taken += n
		if n > 0 {
			s.progress = time.Now()
			if s.source != nil {
				credits = append(credits, credit{s.source, s.countLocked(n)})
			}
		}
		switch {
		case s.taken < len(s.pending):
			s.wait()
		default:
			s.pending, s.taken = nil, 0
			if s.trailer != nil {
				t := s.trailer
				s.trailer = nil
				s.encodeTrailer(t)
				s.endLocal()
			}
		}
	}
	if len(c.ready) == 0 {
		c.ready = nil
	}
	return credits
}

// wait lists a stream with a waiting body, if its window lets it send; mu is
// held.
func (s *Stream) wait() {
	if !s.inReady && s.sendWindow > 0 && s.taken < len(s.pending) {
		s.inReady = true
		s.conn.ready = append(s.conn.ready, s)
	}
}

// frame appends as much of p as may be sent now; mu is held. With end the last
// frame ends the stream.
func (s *Stream) frame(p []byte, end bool) int {
	c := s.conn
	sent := 0
	for {
		n := min(len(p)-sent, s.sendWindow, c.sendWindow, c.peerFrame)
		if len(c.out) >= unsentData {
			n = min(n, 0)
		}
		last := end && sent+max(n, 0) == len(p)
		if n <= 0 && !(last && sent == len(p)) {
			return sent
		}
		n = max(n, 0)
		var flags byte
		if last {
			flags = flagEndStream
		}
		c.out = appendHeader(c.out, n, typeData, flags, s.id)
		c.out = append(c.out, p[sent:sent+n]...)
		s.sendWindow -= n
		c.sendWindow -= n
		sent += n
		c.control.earn(2)
		if last {
			s.endLocal()
			return sent
		}
		if sent == len(p) {
			return sent
		}
	}
}

// kick makes sure that what was appended gets written: by the reader if it is
// at work, else by us; mu is held and released.
func (c *Conn) kick() {
	if !c.blocked {
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	c.Flush()
}
