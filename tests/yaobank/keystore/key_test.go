package keystore

import (
	"strings"
	"testing"
)

func TestParseKey(t *testing.T) {
	for _, test := range []struct{ raw, want string }{
		{"", "/"},
		{"/", "/"},
		{"//", "/"},
		{"/a/b", "/a/b"},
		{"/a//b/", "/a/b"},
		{"/a/./b", "/a/b"},
		{"/a/../b", "/b"},
		{"/../../etc", "/etc"},
		{"/Ünïcode/ключ", "/Ünïcode/ключ"},
		{"/...", "/..."},
	} {
		got, err := parseKey(test.raw)
		if err != nil || got != test.want {
			t.Errorf("parseKey(%q) = %q, %v, want %q", test.raw, got, err, test.want)
		}
	}
}

func TestParseKeyRefuses(t *testing.T) {
	for _, raw := range []string{
		"/a\x00b", "/a\nb", "/\x7f", "/\xff", "/" + strings.Repeat("x", maxKeyBytes), strings.Repeat("/x", maxKeyDepth+1),
	} {
		if got, err := parseKey(raw); err == nil {
			t.Errorf("parseKey(%.40q) = %.40q, want an error", raw, got)
		}
	}
}

// A key that parses is canonical, stays in the tree, and names the same node
// for a write and a read.
func FuzzParseKey(f *testing.F) {
	for _, raw := range []string{"", "/", "/a/b", "/../x", "/a/./b//", "/%2e%2e", "/_hidden", "a", "/a\x00", "/\xff\xfe", strings.Repeat("/x", 40)} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		key, err := parseKey(raw)
		if err != nil {
			return
		}
		again, err := parseKey(key)
		if err != nil || again != key {
			t.Fatalf("parseKey(%q) = %q, and of that %q, %v", raw, key, again, err)
		}
		if !strings.HasPrefix(key, "/") || key != "/" && strings.HasSuffix(key, "/") {
			t.Fatalf("parseKey(%q) = %q, not in canonical form", raw, key)
		}
		for _, name := range segments(key) {
			if name == "" || name == "." || name == ".." {
				t.Fatalf("parseKey(%q) = %q holds the segment %q", raw, key, name)
			}
		}
		store := New()
		if key == "/" {
			return
		}
		if _, err := store.Set(key, "v", false, Precondition{}); err != nil {
			t.Fatalf("set %q: %v", key, err)
		}
		event, err := store.Read(key, false)
		if err != nil || event.Node.Key != key || *event.Node.Value != "v" {
			t.Fatalf("read %q back: %+v, %v", key, event, err)
		}
	})
}
