package canonical

import (
	"errors"
	"net/url"
	"path"
	"strings"
	"testing"
)

func TestPath(t *testing.T) {
	for _, c := range []struct {
		target, want, query string
		err                 error
	}{
		{target: "/", want: "/"},
		{target: "/a/b", want: "/a/b"},
		{target: "/a//b", want: "/a/b"},
		{target: "//a", want: "/a"},
		{target: "/a/./b", want: "/a/b"},
		{target: "/a/../b", want: "/b"},
		{target: "/a/b/..", want: "/a/"},
		{target: "/a/.", want: "/a/"},
		{target: "/..", want: "/"},
		{target: "/../../x", want: "/x"},
		{target: "/%61dmin", want: "/admin"},
		{target: "/%2e%2e/admin", want: "/admin"},
		{target: "/a/%2E/b", want: "/a/b"},
		{target: "/a%20b", want: "/a%20b"},
		{target: "/a%c3%a9", want: "/a%C3%A9"},
		{target: "/a%252fb", want: "/a%252fb"},
		{target: "/a;x=1/b", want: "/a;x=1/b"},
		{target: "/...", want: "/..."},
		{target: "/.well-known/x", want: "/.well-known/x"},
		{target: "/a?b=/../c", want: "/a", query: "?b=/../c"},
		{target: "/..;x=/admin", err: ErrDotParams},
		{target: "/a/.;/b", err: ErrDotParams},
		{target: "/%2e%2e;/b", err: ErrDotParams},
		{target: "/..%3bx=/admin", err: ErrDotParams},
		{target: "/%2E%2e%3B;/b", err: ErrDotParams},
		{target: "/a%3b..;/b", want: "/a%3B..;/b"},
		{target: "/a%2fb", err: ErrSeparator},
		{target: "/a%2Fb", err: ErrSeparator},
		{target: "/a%5cb", err: ErrSeparator},
		{target: `/a\b`, err: ErrSeparator},
		{target: "/a%00", err: ErrSeparator},
		{target: "/a%", err: ErrEscape},
		{target: "/a%2", err: ErrEscape},
		{target: "/a%zz", err: ErrEscape},
		{target: "/a#b", err: ErrFragment},
		{target: "/a?b#c", err: ErrFragment},
		{target: "a/b", err: ErrForm},
		{target: "*", err: ErrForm},
		{target: "ftp://h/x", err: ErrForm},
	} {
		var got Target
		err := got.Set([]byte("GET"), []byte(c.target), []byte("h"))
		if !errors.Is(err, c.err) {
			t.Errorf("%q: error %v, want %v", c.target, err, c.err)
		} else if got.Path != c.want || got.Query != c.query {
			t.Errorf("%q: got %q %q, want %q %q", c.target, got.Path, got.Query, c.want, c.query)
		}
	}
}

func TestHost(t *testing.T) {
	for _, c := range []struct {
		method, target, host string
		wantHost, authority  string
		err                  error
	}{
		{host: "a.b", wantHost: "a.b", authority: "a.b"},
		{host: "A.b:80", wantHost: "a.b", authority: "a.b:80"},
		{host: "a.b.", wantHost: "a.b", authority: "a.b"},
		{host: "a.b.:8080", wantHost: "a.b", authority: "a.b:8080"},
		{host: "a:", wantHost: "a", authority: "a"},
		{host: "[FD00::1]:80", wantHost: "[fd00::1]", authority: "[fd00::1]:80"},
		{host: "a@b", err: ErrHost},
		{host: "a:b", err: ErrHost},
		{host: "a:80:90", err: ErrHost},
		{host: "a b", err: ErrHost},
		{host: "a%41", err: ErrHost},
		{host: "..", err: ErrHost},
		{host: "[::1", err: ErrHost},
		{host: "[::1]x", err: ErrHost},
		{target: "http://h/x", host: "h", wantHost: "h", authority: "h"},
		{target: "http://H/x", host: "h", wantHost: "h", authority: "h"},
		{target: "http://h/x", host: "g", err: ErrTwoHosts},
		{target: "http://h:80/x", host: "h", err: ErrTwoHosts},
		{target: "http://u@h/x", host: "h", err: ErrHost},
		{method: "CONNECT", target: "h:443", host: "h:443", wantHost: "h", authority: "h:443"},
		{method: "CONNECT", target: "h:443", host: "h", wantHost: "h", authority: "h:443"},
		{method: "CONNECT", target: "h:443", host: "g", err: ErrTwoHosts},
		{method: "CONNECT", target: "/x", host: "h", err: ErrForm},
		{method: "CONNECT", target: "h", host: "h", err: ErrForm},
	} {
		if c.method == "" {
			c.method = "GET"
		}
		if c.target == "" {
			c.target = "/x"
		}
		var got Target
		err := got.Set([]byte(c.method), []byte(c.target), []byte(c.host))
		if !errors.Is(err, c.err) {
			t.Errorf("%s %q host %q: error %v, want %v", c.method, c.target, c.host, err, c.err)
		} else if err == nil && (got.Host != c.wantHost || got.Authority != c.authority) {
			t.Errorf("%s %q host %q: got %q %q", c.method, c.target, c.host, got.Host, got.Authority)
		}
	}
}

// FuzzPath: normalising is idempotent, and what it yields has one reading
// only: an independent decoder and path.Clean find the same resource.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/", "/a/../b", "/%2e%2e/x", "//", "/a%2", "/..;/", "/%41//.", "/a%25"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if s == "" || s[0] != '/' || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			t.Skip()
		}
		var one, two Target
		if one.Set([]byte("GET"), []byte(s), nil) != nil {
			t.Skip()
		}
		if err := two.Set([]byte("GET"), []byte(one.Path), nil); err != nil || two.Path != one.Path {
			t.Fatalf("%q → %q → %q, %v", s, one.Path, two.Path, err)
		}
		decoded, err := url.PathUnescape(one.Path)
		if err != nil {
			t.Fatalf("%q → %q: %v", s, one.Path, err)
		}
		clean := path.Clean(decoded)
		if strings.HasSuffix(decoded, "/") && clean != "/" {
			clean += "/"
		}
		if clean != decoded {
			t.Fatalf("%q → %q decodes to %q but cleans to %q", s, one.Path, decoded, clean)
		}
	})
}

func TestCanonicalAllocatesNothing(t *testing.T) {
	var target Target
	method, path, host := []byte("GET"), []byte("/v2/keys/a?recursive=true"), []byte("database:2379")
	if n := testing.AllocsPerRun(100, func() { _ = target.Set(method, path, host) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestConnectNamesOneHost: the check holds when both names have to be folded,
// which happens in one buffer.
func TestConnectNamesOneHost(t *testing.T) {
	for host, want := range map[string]error{"EXAMPLE.com": ErrTwoHosts, "EXAMPLE.com:443": ErrTwoHosts, "Evilest.com:443": nil, "evilest.COM": nil} {
		var target Target
		if err := target.Set([]byte("CONNECT"), []byte("EVILEST.com:443"), []byte(host)); err != want {
			t.Errorf("Host %s: got %v, want %v", host, err, want)
		}
	}
}
