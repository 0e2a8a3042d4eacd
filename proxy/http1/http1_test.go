package http1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

func parse(raw string, r func(io.Reader) io.Reader) (*Head, *Body, *Reader, error) {
	rd := NewReader(r(strings.NewReader(raw)), DefaultLimits)
	h, b := &Head{}, &Body{}
	if err := rd.ReadRequest(h); err != nil {
		return h, b, rd, err
	}
	b.Start(rd, h)
	return h, b, rd, nil
}

func readAll(b *Body) (string, error) {
	var out []byte
	for {
		p, err := b.Next()
		out = append(out, p...)
		if errors.Is(err, io.EOF) {
			return string(out), nil
		}
		if err != nil {
			return string(out), err
		}
	}
}

func TestRequests(t *testing.T) {
	const host = "Host: x\r\n"
	for _, c := range []struct {
		raw  string
		err  error
		body string
	}{
		{raw: "GET / HTTP/1.1\r\n" + host + "\r\n"},
		{raw: "GET / HTTP/1.0\r\n\r\n"},
		{raw: "GET /?q=~!@$&'()*+,;=:|{}\"<>^` HTTP/1.1\r\n" + host + "\r\n"},
		{raw: "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabc", body: "abc"},
		{raw: "POST / HTTP/1.1\r\n" + host + "Content-Length: 0\r\n\r\n"},
		{raw: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\nA;x=\"y\"\r\n0123456789\r\n000\r\nT: v\r\n\r\n", body: "abc0123456789"},
		{raw: "GET / HTTP/1.1\r\n" + host + "A:\t b \t\r\n\r\n"},
		{raw: "GET / HTTP/1.1\r\n" + host + "A: \xff\x80\r\n\r\n"},

		{raw: "GET /\x80 HTTP/1.1\r\n" + host + "\r\n", err: ErrTarget},
		{raw: "GET / HTTP/1.1 \r\n" + host + "\r\n", err: ErrStartLine},
		{raw: "GET / HTTP/2.0\r\n" + host + "\r\n", err: ErrVersion},
		{raw: "GET / HTTP/1.11\r\n" + host + "\r\n", err: ErrStartLine},
		{raw: "GET /\r\n" + host + "\r\n", err: ErrTarget},
		{raw: "G(T / HTTP/1.1\r\n" + host + "\r\n", err: ErrMethod},
		{raw: " GET / HTTP/1.1\r\n" + host + "\r\n", err: ErrMethod},
		{raw: "\r\n\r\n", err: ErrMethod},
		{raw: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", err: ErrPreface},
		{raw: "GET / HTTP/1.1\r\n\r\n", err: ErrHost},
		{raw: "GET / HTTP/1.1\r\n" + host + host + "\r\n", err: ErrHost},
		{raw: "GET / HTTP/1.0\r\n" + host + host + "\r\n", err: ErrHost},
		{raw: "GET / HTTP/1.1\n" + host + "\r\n", err: ErrBareLF},
		{raw: "GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", err: ErrBareLF},
		{raw: "GET / HTTP/1.1\r\nHost: x\rA: b\r\n\r\n", err: ErrBareCR},
		{raw: "GET / HTTP/1.1\r\n" + host + " A: b\r\n\r\n", err: ErrFold},
		{raw: "GET / HTTP/1.1\r\n" + host + "A : b\r\n\r\n", err: ErrFieldName},
		{raw: "GET / HTTP/1.1\r\n" + host + ": b\r\n\r\n", err: ErrFieldName},
		{raw: "GET / HTTP/1.1\r\n" + host + "A\r\n\r\n", err: ErrFieldName},
		{raw: "GET / HTTP/1.1\r\n" + host + "A: b\x00\r\n\r\n", err: ErrFieldValue},
		{raw: "GET / HTTP/1.1\r\n" + host + "A: b\x7f\r\n\r\n", err: ErrFieldValue},
		{raw: "GET / HTTP/1.1\r\n" + host + "Content-Length: 1, 1\r\n\r\na", err: ErrLength},
		{raw: "GET / HTTP/1.1\r\n" + host + "Content-Length: -1\r\n\r\na", err: ErrLength},
		{raw: "GET / HTTP/1.1\r\n" + host + "Content-Length: \r\n\r\na", err: ErrLength},
		{raw: "GET / HTTP/1.1\r\n" + host + "Content-Length: 9999999999999999999\r\n\r\na", err: ErrLength},
		{raw: "GET / HTTP/1.1\r\n" + host + "Content-Length: 1\r\ncontent-length: 1\r\n\r\na", err: ErrLength},
		{raw: "GET / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\na", err: ErrLengthAndCoding},
		{raw: "GET / HTTP/1.1\r\n" + host + "Transfer-Encoding: identity\r\n\r\na", err: ErrCoding},
		{raw: "GET / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\na", err: ErrCoding},
		{raw: "GET / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\na", err: ErrCoding},
		{raw: "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\na", err: ErrCodingVersion},
		{raw: "GET / HTTP/1.1\r\n" + host + "Expect: more\r\n\r\n", err: ErrExpect},
		{raw: "GET / HTTP/1.1\r\n" + host + "Connection: content-length\r\n\r\n", err: ErrConnection},
		{raw: "CONNECT x:1 HTTP/1.1\r\n" + host + "Content-Length: 1\r\n\r\na", err: ErrLength},
		{raw: "GET / HTTP/1.1\r\n" + host + "A: " + strings.Repeat("a", 64<<10) + "\r\n\r\n", err: ErrHeadSize},
		{raw: "GET / HTTP/1.1\r\n" + host + strings.Repeat("A:\r\n", 128) + "\r\n", err: ErrFieldCount},

		{raw: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n", err: ErrBareLF},
		{raw: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", err: ErrChunk},
		{raw: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", err: ErrChunk},
		{raw: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n 3\r\nabc\r\n0\r\n\r\n", err: ErrChunk},
		{raw: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n", err: ErrChunk},
		{raw: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3;\r\nabc\r\n0\r\n\r\n", err: ErrChunk},
		{raw: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", err: ErrChunk},
		{raw: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3;a=" + strings.Repeat("b", 300) + "\r\nabc\r\n", err: ErrChunkExtension},
		{raw: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\nA : b\r\n\r\n", err: ErrFieldName},
		{raw: "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nab", err: io.ErrUnexpectedEOF},
		{raw: "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nab", err: io.ErrUnexpectedEOF},
		{raw: "GET / HT", err: io.ErrUnexpectedEOF},
		{raw: "", err: io.EOF},
	} {
		for name, r := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader} {
			_, b, _, err := parse(c.raw, r)
			got := ""
			if err == nil {
				got, err = readAll(b)
			}
			if !errors.Is(err, c.err) {
				t.Errorf("%s %.70q: error %v, want %v", name, c.raw, err, c.err)
			} else if c.err == nil && got != c.body {
				t.Errorf("%s %.70q: body %q, want %q", name, c.raw, got, c.body)
			}
		}
	}
}

func TestResponses(t *testing.T) {
	get, head, connect := &Head{Method: []byte("GET")}, &Head{Method: []byte("HEAD")}, &Head{Method: []byte("CONNECT")}
	for _, c := range []struct {
		raw     string
		request *Head
		framing Framing
		err     error
	}{
		{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", get, ByLength, nil},
		{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", head, NoBody, nil},
		{"HTTP/1.1 200\r\n\r\n", get, UntilEOF, nil},
		{"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n", get, NoBody, nil},
		{"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", get, NoBody, nil},
		{"HTTP/1.1 103 Early Hints\r\n\r\n", get, NoBody, nil},
		{"HTTP/1.1 101 Switching Protocols\r\n\r\n", get, Tunnelled, nil},
		{"HTTP/1.1 200 OK\r\n\r\n", connect, Tunnelled, nil},
		{"HTTP/1.1 407 No\r\nContent-Length: 3\r\n\r\n", connect, ByLength, nil},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", get, Chunked, nil},
		{"HTTP/1.1 204 OK\r\nTransfer-Encoding: chunked\r\n\r\n", get, NoBody, ErrCoding},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", get, NoBody, ErrLengthAndCoding},
		{"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", get, NoBody, ErrCodingVersion},
		{"HTTP/1.1 20 OK\r\n\r\n", get, NoBody, ErrStartLine},
		{"HTTP/1.1 099 OK\r\n\r\n", get, NoBody, ErrStartLine},
		{"HTTP/2 200 OK\r\n\r\n", get, NoBody, ErrStartLine},
		{"ICY 200 OK OK OK\r\n\r\n", get, NoBody, ErrStartLine},
	} {
		h := &Head{}
		err := NewReader(strings.NewReader(c.raw), DefaultLimits).ReadResponse(h, c.request)
		if !errors.Is(err, c.err) || err == nil && h.Framing != c.framing {
			t.Errorf("%q: framing %d, %v; want %d, %v", c.raw, h.Framing, err, c.framing, c.err)
		}
	}
}

// FuzzRequest: whatever is accepted here net/http accepts too, and reads as
// the same request with the same body and the same rest.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nT: v\r\n\r\nrest",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close, X\r\nX: y\r\n\r\n",
		"GET http://x/ HTTP/1.0\r\n\r\n",
		"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := NewReader(bytes.NewReader(raw), DefaultLimits)
		h, b := &Head{}, &Body{}
		if r.ReadRequest(h) != nil {
			return
		}
		b.Start(r, h)
		body, err := readAll(b)
		if err != nil {
			return
		}
		rest, _ := io.ReadAll(r)

		br := bufio.NewReader(bytes.NewReader(raw))
		want, err := http.ReadRequest(br)
		if err != nil {
			// net/http refuses targets and hosts that package canonical judges.
			if strings.Contains(err.Error(), "parse ") || strings.Contains(err.Error(), "Host header") || strings.Contains(err.Error(), "URI") {
				return
			}
			t.Fatalf("accepted %q, net/http: %v", raw, err)
		}
		if want.Method != string(h.Method) || want.RequestURI != string(h.Target) || want.ProtoMinor != h.Minor {
			t.Fatalf("%q: got %s %s 1.%d, net/http has %s %s 1.%d", raw, h.Method, h.Target, h.Minor, want.Method, want.RequestURI, want.ProtoMinor)
		}
		wantBody, err := io.ReadAll(want.Body)
		if err != nil {
			t.Fatalf("accepted the body of %q, net/http: %v", raw, err)
		}
		if string(wantBody) != body {
			t.Fatalf("%q: body %q, net/http has %q", raw, body, wantBody)
		}
		wantRest, _ := io.ReadAll(br)
		if !bytes.Equal(wantRest, rest) {
			t.Fatalf("%q: rest %q, net/http has %q", raw, rest, wantRest)
		}
	})
}

func TestHeadAllocatesNothing(t *testing.T) {
	raw := []byte("GET /v2/keys/a?recursive=true HTTP/1.1\r\nHost: database:2379\r\nUser-Agent: curl/8\r\nAccept: */*\r\ntraceparent: 00-1-2-01\r\n\r\n")
	src := bytes.NewReader(raw)
	r, h := NewReader(src, DefaultLimits), &Head{}
	if n := testing.AllocsPerRun(200, func() {
		src.Reset(raw)
		r.err = nil
		if err := r.ReadRequest(h); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a head", n)
	}
}

func BenchmarkReadRequest(b *testing.B) {
	raw := []byte("GET /v2/keys/a?recursive=true HTTP/1.1\r\nHost: database:2379\r\nUser-Agent: curl/8\r\nAccept: */*\r\nAccept-Encoding: gzip\r\nX-Request-Id: 0123456789\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n")
	src := bytes.NewReader(raw)
	r, h := NewReader(src, DefaultLimits), &Head{}
	b.ReportAllocs()
	for b.Loop() {
		src.Reset(raw)
		r.err = nil
		if err := r.ReadRequest(h); err != nil {
			b.Fatal(err)
		}
	}
}

// TestPending: before Next has to wait, what it gave before must be sent on; the
// end of a chunk that is here already is no reason to hold it back.
func TestPending(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, tc := range []struct {
		rest    string
		pending bool
	}{
		{"", true},
		{"\r", true},
		{"\r\n", true},
		{"\r\n5", true},
		{"\r\n5\r\n", true},
		{"\r\n5\r\nh", false},
		{"\r\n0\r\n", true},
		{"\r\n0\r\nX-T: 1\r\n", true},
		{"\r\n0\r\nX-T: 1\r\n\r\n", false},
		{"\r\n0\r\n\r\n", false},
	} {
		near, far := net.Pipe()
		go func() { _, _ = io.WriteString(far, head+"5\r\nhello"+tc.rest) }()
		r := NewReader(near, DefaultLimits)
		var h Head
		var b Body
		if err := r.ReadRequest(&h); err != nil {
			t.Fatal(err)
		}
		b.Start(r, &h)
		if p, err := b.Next(); err != nil || string(p) != "hello" {
			t.Fatalf("%q: got %q, %v", tc.rest, p, err)
		}
		if got := b.Pending(); got != tc.pending {
			t.Errorf("%q: pending %v, want %v", tc.rest, got, tc.pending)
		}
		near.Close()
		far.Close()
	}
}
