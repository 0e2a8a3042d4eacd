package telemetry

import "testing"

// FuzzContext: what a peer claims of a trace is valid or nothing, and is written
// as it was read.
func FuzzContext(f *testing.F) {
	f.Add([]byte("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
	f.Add([]byte("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what the future may be like"))
	f.Add([]byte("0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1-05e3ac9a4f6e3b90"))
	f.Add([]byte("0"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, ok := parseTraceparent(b); ok {
			if !c.Valid() {
				t.Fatalf("%q: accepted, but not valid", b)
			}
			again, ok := parseTraceparent(c.appendTraceparent(nil))
			if !ok || again != c {
				t.Fatalf("%q: %+v is read again as %+v, %v", b, c, again, ok)
			}
		}
		if c, ok := parseB3(b); ok && !c.Valid() && c != (Context{Sampled: c.Sampled}) {
			t.Fatalf("%q: accepted as half of a context: %+v", b, c)
		}
	})
}
