package http2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo answers each request with 200 and its own body.
type echo struct {
	mu     sync.Mutex
	opened int
	bad    []string
	hold   bool // does not answer
}

func (e *echo) Open(s *Stream, _ *Head, end bool) Receiver {
	e.mu.Lock()
	e.opened++
	e.mu.Unlock()
	if !e.hold {
		if w, ok := s.Begin(); ok {
			w.Field(":status", "200")
			w.End(end)
		}
		s.Link(e, s, 0)
	}
	return e
}

func (e *echo) Bad(_ int, reason string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bad = append(e.bad, reason)
}
func (e *echo) Head(s *Stream, h *Head, _ bool)    { s.Trailer(h.Fields) }
func (e *echo) Data(s *Stream, p []byte, end bool) { s.Write(p, end) }
func (e *echo) Closed(*Stream, Closing)            {}

var quick = Timeouts{Preface: 5 * time.Second, Idle: time.Minute, Head: 5 * time.Second, Write: 5 * time.Second, Stall: 5 * time.Second}

// victim is a server and a raw client's side of a connection to it.
type victim struct {
	t *testing.T
	net.Conn
	*xhttp2.Framer
	enc    *hpack.Encoder
	block  bytes.Buffer
	served chan error
	conn   *Conn
	*echo
}

func newVictim(t *testing.T, limits Limits, times Timeouts, e *echo) *victim {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	v := &victim{t: t, served: make(chan error, 1), echo: e}
	if v.Conn, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan *Conn, 1)
	go func() {
		v.served <- Serve(server, nil, Options{Limits: limits, Timeouts: times, Handler: e}, func(c *Conn) { started <- c })
	}()
	v.conn = <-started
	v.Framer = xhttp2.NewFramer(v.Conn, v.Conn)
	v.Framer.AllowIllegalWrites = true
	v.enc = hpack.NewEncoder(&v.block)
	_ = v.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { v.Conn.Close(); <-v.served })
	return v
}

func (v *victim) hello(settings ...xhttp2.Setting) {
	v.t.Helper()
	if _, err := io.WriteString(v.Conn, Preface); err != nil {
		v.t.Fatal(err)
	}
	if err := v.WriteSettings(settings...); err != nil {
		v.t.Fatal(err)
	}
}

func (v *victim) encode(fields ...string) []byte {
	v.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = v.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return v.block.Bytes()
}

var getRoot = []string{":method", "GET", ":scheme", "http", ":authority", "x", ":path", "/"}

func (v *victim) request(id uint32, end bool, more ...string) error {
	return v.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: id, EndStream: end, EndHeaders: true,
		BlockFragment: v.encode(append(append([]string{}, getRoot...), more...)...)})
}

// goAway reads until the server says why it ends the connection.
func (v *victim) goAway() xhttp2.ErrCode {
	v.t.Helper()
	for {
		f, err := v.ReadFrame()
		if err != nil {
			v.t.Fatalf("the connection ended without GOAWAY: %v", err)
		}
		if g, ok := f.(*xhttp2.GoAwayFrame); ok {
			return g.ErrCode
		}
	}
}

// TestFloods: what costs a client little and the server something ends the
// connection, soon and with little memory.
func TestFloods(t *testing.T) {
	limits := DefaultLimits
	limits.ControlRate, limits.ResetRate = 1, 1 // as if it took no time
	for name, attack := range map[string]func(v *victim, i int) error{
		"PING":           func(v *victim, _ int) error { return v.WritePing(false, [8]byte{}) },
		"SETTINGS":       func(v *victim, _ int) error { return v.WriteSettings() },
		"PRIORITY":       func(v *victim, _ int) error { return v.WritePriority(1, xhttp2.PriorityParam{StreamDep: 3}) },
		"WINDOW_UPDATE":  func(v *victim, _ int) error { return v.WriteWindowUpdate(0, 1) },
		"unknown frames": func(v *victim, _ int) error { return v.WriteRawFrame(0x77, 0, 0, nil) },
		"empty DATA": func(v *victim, i int) error {
			if i == 0 {
				return v.request(1, false)
			}
			return v.WriteData(1, false, nil)
		},
		"padding alone": func(v *victim, i int) error {
			if i == 0 {
				return v.request(1, false)
			}
			return v.WriteDataPadded(1, false, nil, nil)
		},
		"rapid reset": func(v *victim, i int) error {
			id := uint32(2*i + 1)
			return errors.Join(v.request(id, true), v.WriteRSTStream(id, xhttp2.ErrCodeCancel))
		},
		"made to reset": func(v *victim, i int) error { // MadeYouReset
			id := uint32(2*i + 1)
			return errors.Join(v.request(id, false), v.WriteWindowUpdate(id, 0))
		},
		"malformed requests": func(v *victim, i int) error {
			return v.request(uint32(2*i+1), true, "Upper", "case")
		},
		"DATA on closed streams": func(v *victim, i int) error {
			if i == 0 {
				return v.request(1, true)
			}
			return v.WriteData(1, false, []byte("x"))
		},
		"CONTINUATION": func(v *victim, i int) error {
			if i == 0 {
				return v.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: v.encode(getRoot...)})
			}
			return v.WriteContinuation(1, false, nil)
		},
		"endless header block": func(v *victim, i int) error {
			if i == 0 {
				return v.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: v.encode(getRoot...)})
			}
			return v.WriteContinuation(1, false, v.encode("a", strings.Repeat("\x01", 10000)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVictim(t, limits, quick, &echo{hold: strings.HasPrefix(name, "rapid") || strings.HasPrefix(name, "made")})
			v.hello()
			written := make(chan struct{})
			go func() {
				defer close(written)
				for i := 0; i < 200_000; i++ {
					if attack(v, i) != nil {
						return
					}
				}
			}()
			if code := v.goAway(); code != xhttp2.ErrCodeEnhanceYourCalm {
				t.Errorf("GOAWAY with %v", code)
			}
			v.Conn.Close()
			<-written
			if v.opened > limits.Resets+2 {
				t.Errorf("%d requests reached the handler", v.opened)
			}
		})
	}
}

// TestUnreadAnswers: a client that makes the server answer and does not read
// costs no more than the bound.
func TestUnreadAnswers(t *testing.T) {
	limits := DefaultLimits
	limits.Control, limits.Unsent = 1<<30, 64<<10
	times := quick
	times.Write = time.Second
	client, server := net.Pipe() // in which nothing is sent that nobody reads
	defer client.Close()
	served := make(chan error, 1)
	go func() {
		served <- Serve(server, []byte(Preface), Options{Limits: limits, Timeouts: times, Handler: &echo{}}, nil)
	}()
	f := xhttp2.NewFramer(client, client)
	sent := 0
	for err := f.WriteSettings(); err == nil; sent++ {
		err = f.WritePing(false, [8]byte{})
	}
	if err := <-served; err == nil || !strings.Contains(err.Error(), "answers are not read") {
		t.Errorf("ended with %v", err)
	}
	if most := 2*limits.Unsent/17 + 200; sent > most {
		t.Errorf("%d frames were taken, at most %d", sent, most)
	}
}

// TestHeaderBombs: what expands when it is decoded is refused, and the
// connection goes on.
func TestHeaderBombs(t *testing.T) {
	for name, fields := range map[string]func(v *victim) []byte{
		"many references to a large field": func(v *victim) []byte {
			b := bytes.Clone(v.encode(append(append([]string{}, getRoot...), "big", strings.Repeat("a", 3500))...))
			return append(b, bytes.Repeat([]byte{0x80 | 62}, 10000)...) // the newest entry of the dynamic table
		},
		"many small fields": func(v *victim) []byte {
			more := append([]string{}, getRoot...)
			for range 500 {
				more = append(more, "cookie", "a=b")
			}
			return v.encode(more...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVictim(t, DefaultLimits, quick, &echo{})
			v.hello()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if err := v.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, BlockFragment: fields(v)}); err != nil {
				t.Fatal(err)
			}
			if got := v.status(1); got != "431" {
				t.Errorf("status %q", got)
			}
			runtime.ReadMemStats(&after)
			if grew := int64(after.TotalAlloc - before.TotalAlloc); grew > 4<<20 {
				t.Errorf("%d bytes were allocated", grew)
			}
			if err := v.request(3, true); err != nil {
				t.Fatal(err)
			}
			if got := v.status(3); got != "200" {
				t.Errorf("then status %q", got)
			}
		})
	}
}

// status reads until a stream's head.
func (v *victim) status(id uint32) (status string) {
	v.t.Helper()
	v.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := v.ReadFrame()
		if err != nil {
			v.t.Fatal(err)
		}
		switch f := f.(type) {
		case *xhttp2.MetaHeadersFrame:
			if f.StreamID == id {
				return f.PseudoValue("status")
			}
		case *xhttp2.RSTStreamFrame:
			if f.StreamID == id {
				return f.ErrCode.String()
			}
		case *xhttp2.GoAwayFrame:
			return "GOAWAY " + f.ErrCode.String()
		}
	}
}

// TestSlowPeers: a peer that is slow in a phase is not waited for.
func TestSlowPeers(t *testing.T) {
	times := Timeouts{Preface: 200 * time.Millisecond, Idle: 200 * time.Millisecond, Head: 200 * time.Millisecond, Write: 5 * time.Second, Stall: time.Millisecond}
	for name, tc := range map[string]struct {
		do   func(v *victim)
		want string
	}{
		"preface":  {func(v *victim) { _, _ = io.WriteString(v.Conn, Preface[:10]) }, "no SETTINGS in time"},
		"settings": {func(v *victim) { _, _ = io.WriteString(v.Conn, Preface) }, "no SETTINGS in time"},
		"header block": {func(v *victim) {
			v.hello()
			_ = v.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: v.encode(getRoot...)})
		}, "header block took too long"},
		"idle": {func(v *victim) { v.hello() }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVictim(t, DefaultLimits, times, &echo{})
			tc.do(v)
			go func() { _, _ = io.Copy(io.Discard, v.Conn); v.Conn.Close() }()
			err := <-v.served
			v.served <- nil
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("ended with %v, want %q", err, tc.want)
			}
		})
	}
}

// TestZeroWindow: bodies that the client gives no window for wait within their
// bound, do not hold up other streams, and are given up in the end.
func TestZeroWindow(t *testing.T) {
	times := quick
	times.Stall = 100 * time.Millisecond
	e := &echo{}
	v := newVictim(t, DefaultLimits, times, e)
	v.hello(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 0})
	// The echo of the first stream gets no window; it may take no more than one
	// stream's window in.
	if err := v.request(1, false); err != nil {
		t.Fatal(err)
	}
	sent := 0
	for sent+16384 <= DefaultLimits.StreamWindow {
		if err := v.WriteData(1, false, make([]byte, 16384)); err != nil {
			t.Fatal(err)
		}
		sent += 16384
	}
	if err := v.request(3, true); err != nil {
		t.Fatal(err)
	}
	if got := v.status(3); got != "200" {
		t.Errorf("the other stream: %q", got)
	}
	v.conn.mu.Lock()
	queued := v.conn.queued
	v.conn.mu.Unlock()
	if queued != sent {
		t.Errorf("%d bytes wait, sent %d", queued, sent)
	}
	for deadline := time.Now().Add(15 * time.Second); v.conn.Load() > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the stalled stream was not given up")
		}
		v.conn.onTick()
	}
	v.conn.mu.Lock()
	defer v.conn.mu.Unlock()
	if v.conn.queued != 0 {
		t.Errorf("%d bytes are still accounted", v.conn.queued)
	}
}

// TestWindowsAreHeld: more than was granted is an error, and a window that
// overflows too.
func TestWindowsAreHeld(t *testing.T) {
	for name, tc := range map[string]struct {
		do   func(v *victim)
		want string
	}{
		"stream": {func(v *victim) {
			_ = v.request(1, false)
			for range DefaultLimits.StreamWindow/16384 + 1 {
				_ = v.WriteData(1, false, make([]byte, 16384))
			}
		}, "FLOW_CONTROL_ERROR"},
		"overflow of a stream":     {func(v *victim) { _ = v.request(1, false); _ = v.WriteWindowUpdate(1, 1<<31-1) }, "FLOW_CONTROL_ERROR"},
		"overflow of a connection": {func(v *victim) { _ = v.request(1, false); _ = v.WriteWindowUpdate(0, 1<<31-1) }, "GOAWAY FLOW_CONTROL_ERROR"},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVictim(t, DefaultLimits, quick, &echo{hold: true})
			v.hello()
			tc.do(v)
			if got := v.status(1); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// TestOpenedTooLate: what a client sends on a stream that it opened before it
// read GOAWAY is ignored, and no fault of the connection.
func TestOpenedTooLate(t *testing.T) {
	v := newVictim(t, DefaultLimits, quick, &echo{})
	v.hello()
	if err := v.request(1, false); err != nil {
		t.Fatal(err)
	}
	if got := v.status(1); got != "200" {
		t.Fatalf("got %q", got)
	}
	v.conn.mu.Lock()
	v.conn.lastWords()
	v.conn.mu.Unlock()
	v.conn.Flush()
	if code := v.goAway(); code != xhttp2.ErrCodeNo {
		t.Fatalf("GOAWAY with %v", code)
	}
	if err := errors.Join(v.request(3, false), v.WriteData(3, true, []byte("late")), v.WriteData(1, true, []byte("whole"))); err != nil {
		t.Fatal(err)
	}
	for {
		f, err := v.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := f.(*xhttp2.DataFrame); ok && d.StreamID == 1 && d.StreamEnded() {
			break
		}
	}
	if err := <-v.served; err != nil {
		t.Error(err)
	}
	v.served <- nil
	if v.opened != 1 {
		t.Errorf("%d requests reached the handler", v.opened)
	}
}

// TestTooManyStreams: more streams than were granted are refused, so that they
// may be repeated elsewhere.
func TestTooManyStreams(t *testing.T) {
	limits := DefaultLimits
	limits.Streams = 2
	v := newVictim(t, limits, quick, &echo{hold: true})
	v.hello()
	for _, id := range []uint32{1, 3, 5} {
		if err := v.request(id, false); err != nil {
			t.Fatal(err)
		}
	}
	if got := v.status(5); got != "REFUSED_STREAM" {
		t.Errorf("got %q", got)
	}
}

// TestMalformedRequests: RFC 9113 section 8 wants a stream error for each.
func TestMalformedRequests(t *testing.T) {
	base := func(more ...string) []string { return append(append([]string{}, getRoot...), more...) }
	for name, fields := range map[string][]string{
		"upper case":               base("X-Upper", "a"),
		"connection":               base("connection", "close"),
		"transfer-encoding":        base("transfer-encoding", "chunked"),
		"upgrade":                  base("upgrade", "h2c"),
		"keep-alive":               base("keep-alive", "1"),
		"te":                       base("te", "gzip"),
		"two lengths":              base("content-length", "0", "content-length", "0"),
		"length without body":      base("content-length", "5"),
		"signed length":            base("content-length", "+0"),
		"NUL":                      base("a", "b\x00"),
		"line feed":                base("a", "b\nc: d"),
		"space in name":            base("a b", "c"),
		"two hosts":                base("host", "x", "host", "x"),
		"pseudo after regular":     {":method", "GET", "a", "b", ":scheme", "http", ":path", "/", ":authority", "x"},
		"two paths":                base(":path", "/")[:10],
		"response pseudo":          append([]string{":status", "200"}, getRoot...),
		"unknown pseudo":           append([]string{":protocol", "websocket"}, getRoot...),
		"no method":                {":scheme", "http", ":path", "/", ":authority", "x"},
		"method not a token":       {":method", "GE T", ":scheme", "http", ":path", "/", ":authority", "x"},
		"empty path":               {":method", "GET", ":scheme", "http", ":path", "", ":authority", "x"},
		"no scheme":                {":method", "GET", ":path", "/", ":authority", "x"},
		"CONNECT with path":        {":method", "CONNECT", ":scheme", "http", ":path", "/", ":authority", "x"},
		"CONNECT to nowhere":       {":method", "CONNECT"},
		"control byte in the path": {":method", "GET", ":scheme", "http", ":path", "/\x01", ":authority", "x"},
	} {
		t.Run(name, func(t *testing.T) {
			e := &echo{}
			v := newVictim(t, DefaultLimits, quick, e)
			v.hello()
			if err := v.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, BlockFragment: v.encode(fields...)}); err != nil {
				t.Fatal(err)
			}
			if got := v.status(1); got != "PROTOCOL_ERROR" {
				t.Errorf("got %q", got)
			}
			if e.opened != 0 || len(e.bad) != 1 {
				t.Errorf("opened %d, bad %q", e.opened, e.bad)
			}
		})
	}
}

// TestLengthsMustMatch: bodies that are not as long as they claim.
func TestLengthsMustMatch(t *testing.T) {
	for name, body := range map[string]string{"longer": "123456", "shorter": "123"} {
		t.Run(name, func(t *testing.T) {
			v := newVictim(t, DefaultLimits, quick, &echo{hold: true})
			v.hello()
			if err := errors.Join(v.request(1, false, "content-length", "5"), v.WriteData(1, true, []byte(body))); err != nil {
				t.Fatal(err)
			}
			if got := v.status(1); got != "PROTOCOL_ERROR" {
				t.Errorf("got %q", got)
			}
		})
	}
}

// FuzzServer: no bytes of a client make the server fail, hang or keep more
// than its bounds.
func FuzzServer(f *testing.F) {
	frame := func(kind, flags byte, stream uint32, payload string) string {
		return string(binary.BigEndian.AppendUint32([]byte{0, byte(len(payload) >> 8), byte(len(payload)), kind, flags}, stream)) + payload
	}
	settings := frame(4, 0, 0, "")
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := 0; i < len(getRoot); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: getRoot[i], Value: getRoot[i+1]})
	}
	get := block.String()
	for _, s := range []string{"", settings, settings + frame(1, 5, 1, get), settings + frame(1, 4, 1, get) + frame(0, 1, 1, "body"),
		settings + frame(1, 4, 1, get) + frame(0, 9, 1, "\x02body\x00\x00") + frame(8, 0, 1, "\x00\x00\x00\x01"),
		settings + frame(1, 0, 1, get[:3]) + frame(9, 4, 1, get[3:]) + frame(3, 0, 1, "\x00\x00\x00\x08"),
		settings + frame(1, 0x25, 1, "\x00\x00\x00\x03\x00"+get) + frame(6, 0, 0, "12345678") + frame(7, 0, 0, "\x00\x00\x00\x00\x00\x00\x00\x00"),
		settings + frame(4, 0, 0, "\x00\x04\x00\x00\x00\x00") + frame(1, 4, 1, get) + frame(0, 0, 1, "abc") + frame(1, 5, 1, get)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		client, server := net.Pipe()
		e := &echo{}
		done := make(chan error, 1)
		var conn *Conn
		started := make(chan struct{})
		go func() {
			done <- Serve(server, []byte(Preface), Options{Limits: DefaultLimits, Timeouts: quick, Handler: e}, func(c *Conn) { conn = c; close(started) })
		}()
		<-started
		_ = client.SetDeadline(time.Now().Add(10 * time.Second))
		drained := make(chan struct{})
		go func() { defer close(drained); _, _ = io.Copy(io.Discard, client) }()
		_, _ = client.Write(b)
		conn.mu.Lock()
		if conn.queued > DefaultLimits.Queued+connWindow || len(conn.streams) > int(DefaultLimits.Streams) || conn.queued < 0 {
			t.Errorf("%d bytes in %d streams", conn.queued, len(conn.streams))
		}
		conn.mu.Unlock()
		client.Close()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("the server did not end with its client")
		}
		<-drained
		if conn.Load() != 0 {
			t.Errorf("%d streams are left", conn.Load())
		}
	})
}
