package sniff

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hauberk-mesh/hauberk/proxy/http1"
)

func TestClassify(t *testing.T) {
	for raw, want := range map[string]Protocol{
		"GET / HTTP/1.1\r\n":               HTTP1,
		"GET / HTTP/1.0\r\nHost":           HTTP1,
		"GET / HTTP/1.1\n":                 HTTP1,
		"\r\n\r\nget / http/1.1\r\n":       HTTP1,
		"M-SEARCH * HTTP/1.1\r\n":          HTTP1,
		"GET /\r\n":                        HTTP1,
		"get\t/x HTTP/1.1\r\n":             HTTP1,
		"FOO x HTTP/9.9\r\n":               HTTP1,
		"PRI * HTTP/2.0\r\n\r\nSM\r\n":     HTTP2,
		"G3T /x HTTP/1.1\r\n":              HTTP1,
		"!#$ /x HTTP/1.1\r\n":              HTTP1,
		"GET /x?\xff HTTP/1.1\r\n":         Unsure,
		"GET /x\x00 HTTP/1.1\r\n":          Unsure,
		"GET\v/x\vHTTP/1.1\r\n":            Unsure,
		"\x1cGET /x HTTP/1.1\r\n":          Unsure,
		"GET\r/x HTTP/1.1\r\n":             Unsure,
		"\x0c\x00\x00\x00":                 Opaque,
		"SSH-2.0-x\r\n":                    Opaque,
		"\x16\x03\x01":                     TLS,
		"\x00\x00\x00\x01":                 Opaque,
		"EHLO mail.example\r\n":            Opaque,
		"QUIT\r\n":                         Opaque,
		"*1\r\n$4\r\nPING\r\n":             Opaque,
		"get key\r\n":                      Opaque,
		"GET \x00\x01":                     Unsure,
		"GIOP\x01":                         Opaque,
		"":                                 more,
		"G":                                more,
		"GET":                              more,
		"GET / HTTP/1.1":                   more,
		"\r\n":                             more,
		"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA": more,
		strings.Repeat("A", 30) + " /x HTTP/1.1\r\n": HTTP1,
		strings.Repeat("A", maxLine+1):               Unsure,
	} {
		if got := Classify([]byte(raw)); got != want {
			t.Errorf("%q: got %d, want %d", raw, got, want)
		}
	}
}

// FuzzClassify: what more bytes can still turn into HTTP is never called opaque
// before, so that fragments reach no weaker path.
func FuzzClassify(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Add([]byte("\r\npost x HTTP/1.0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		whole := Classify(b)
		for i := range b {
			if part := Classify(b[:i]); part != more && part != whole {
				t.Fatalf("%q is %d but %q is %d", b[:i], part, b, whole)
			}
		}
	})
}

// TestUnfinishedLineIsNotOpaque: neither waiting nor ending in the middle of the
// line makes a request anything else.
func TestUnfinishedLineIsNotOpaque(t *testing.T) {
	for _, tc := range []struct {
		sent string
		end  bool
		want Protocol
	}{
		{"GET", false, Unsure},
		{"GET /x", false, HTTP1},
		{"GET /x HTTP/1.1", true, HTTP1},
		{"hello", true, Opaque},
	} {
		client, server := net.Pipe()
		go func() {
			_, _ = io.WriteString(client, tc.sent)
			if tc.end {
				client.Close()
			}
		}()
		got := Detect(server, http1.NewReader(server, http1.DefaultLimits), 10*time.Second, 50*time.Millisecond)
		if got != tc.want || (got == Unsure) != got.Unread() {
			t.Errorf("%q, ended %v: got %d, want %d", tc.sent, tc.end, got, tc.want)
		}
		client.Close()
		server.Close()
	}
}
