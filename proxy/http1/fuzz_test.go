package http1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/iotest"
)

// FuzzResponse: whatever is accepted here as a response net/http accepts too, and
// reads as the same response with the same body and the same rest.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\n\r\n",
		"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nT: v\r\n\r\nrest",
		"HTTP/1.0 200 OK\r\n\r\nuntil the end",
		"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nrest",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nrest",
		"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\nrest",
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, raw []byte, head bool) {
		request, asked := &Head{Method: []byte("GET")}, &http.Request{Method: "GET"}
		if head {
			request, asked = &Head{Method: []byte("HEAD")}, &http.Request{Method: "HEAD"}
		}
		r := NewReader(bytes.NewReader(raw), DefaultLimits)
		h, b := &Head{}, &Body{}
		if r.ReadResponse(h, request) != nil || h.Status < 200 {
			return
		}
		b.Start(r, h)
		body, err := readAll(b)
		if err != nil {
			return
		}
		rest, _ := io.ReadAll(r)

		br := bufio.NewReader(bytes.NewReader(raw))
		want, err := http.ReadResponse(br, asked)
		if err != nil {
			t.Fatalf("accepted %q, net/http: %v", raw, err)
		}
		wantBody, err := io.ReadAll(want.Body)
		if err != nil {
			t.Fatalf("accepted the body of %q, net/http: %v", raw, err)
		}
		wantRest, _ := io.ReadAll(br)
		if want.StatusCode != h.Status || string(wantBody) != body || !bytes.Equal(wantRest, rest) {
			t.Fatalf("%q: %d, body %q, rest %q; net/http has %d, %q, %q", raw, h.Status, body, rest, want.StatusCode, wantBody, wantRest)
		}
	})
}

// message is what reading all of one request came to.
type message struct {
	err, bodyErr                  error
	method, target, body, trailer string
	fields                        int
	rest                          string
}

func read(src io.Reader) (m message) {
	r := NewReader(src, DefaultLimits)
	h, b := &Head{}, &Body{}
	if m.err = r.ReadRequest(h); m.err != nil {
		return m
	}
	m.method, m.target, m.fields = string(h.Method), string(h.Target), len(h.Fields)
	b.Start(r, h)
	for {
		p, err := b.Next()
		m.body += string(p)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				m.bodyErr = err
				return m
			}
			break
		}
	}
	for _, f := range b.Trailers.Fields {
		m.trailer += string(f.Name) + ":" + string(f.Value) + "\n"
	}
	rest, _ := io.ReadAll(r)
	m.rest = string(rest)
	return m
}

// FuzzPieces: how a message is cut into packets changes nothing of what it means.
func FuzzPieces(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\nrest",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcrest",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nT: v\r\n\r\nrest",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX\n",
		"GET / HTTP/1.1\nHost: x\n\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		whole, pieces := read(bytes.NewReader(raw)), read(iotest.OneByteReader(bytes.NewReader(raw)))
		// Which of several faults is found first may depend on how much is there.
		if (whole.err == nil) != (pieces.err == nil) || (whole.bodyErr == nil) != (pieces.bodyErr == nil) {
			t.Fatalf("%q: %v and %v at once, %v and %v in pieces", raw, whole.err, whole.bodyErr, pieces.err, pieces.bodyErr)
		}
		whole.err, whole.bodyErr, pieces.err, pieces.bodyErr = nil, nil, nil, nil
		if whole != pieces {
			t.Fatalf("%q: %+v at once, %+v in pieces", raw, whole, pieces)
		}
	})
}
