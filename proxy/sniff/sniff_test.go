package sniff

import "testing"

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
		"PRI * HTTP/2.0\r\n\r\nSM\r\n":     Opaque,
		"SSH-2.0-x\r\n":                    Opaque,
		"\x16\x03\x01":                     Opaque,
		"\x00\x00\x00\x01":                 Opaque,
		"EHLO mail.example\r\n":            Opaque,
		"QUIT\r\n":                         Opaque,
		"*1\r\n$4\r\nPING\r\n":             Opaque,
		"get key\r\n":                      Opaque,
		"GET \x00\x01":                     Opaque,
		"GIOP\x01":                         Opaque,
		"":                                 more,
		"G":                                more,
		"GET":                              more,
		"GET / HTTP/1.1":                   more,
		"\r\n":                             more,
		"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA": Opaque,
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
