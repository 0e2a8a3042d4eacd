package version

import "testing"

func TestString(t *testing.T) {
	for _, test := range []struct{ version, commit, want string }{
		{"dev", "", "dev"},
		{"v0.1.0", "0123456789abcdef0123456789abcdef01234567", "v0.1.0 (0123456789ab)"},
		{"v0.1.0", "abc-dirty", "v0.1.0 (abc-dirty)"},
		{"v0.1.0", "0123456789abcdef0123456789abcdef01234567-dirty", "v0.1.0 (0123456789ab-dirty)"},
	} {
		Version, Commit = test.version, test.commit
		if got := String(); got != test.want {
			t.Errorf("String() with %q and %q = %q, want %q", test.version, test.commit, got, test.want)
		}
	}
	Version, Commit = "dev", ""
}
