package verdict

import "testing"

// TestCanonicalPath spells paths as sidecars do (proxy/canonical).
func TestCanonicalPath(t *testing.T) {
	tests := []struct {
		path, want string // empty: refused
	}{
		{"/", "/"},
		{"/a/b?c=d", "/a/b"},
		{"//a///b/", "/a/b/"},
		{"/a/./b/../c", "/a/c"},
		{"/../..", "/"},
		{"/a/..", "/"},
		{"/a/b/..", "/a/"},
		{"/a/.", "/a/"},
		{"/%61%2d%7e", "/a-~"},
		{"/a%20b%c3%a9", "/a%20b%C3%A9"},
		{"/%2e%2e/a", "/a"},
		{"/a;x=1/b", "/a;x=1/b"},
		{"/a%2Fb", ""},
		{"/a%5cb", ""},
		{"/a%00", ""},
		{`/a\b`, ""},
		{"/a%2", ""},
		{"/a%zz", ""},
		{"/a#b", ""},
		{"/a/..;x/b", ""},
		{"a", ""},
	}
	for _, test := range tests {
		got, err := canonicalPath(test.path)
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("canonicalPath(%q) = %q, %v; want %q", test.path, got, err, test.want)
		}
	}
}
