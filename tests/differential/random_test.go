package differential

import (
	"flag"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// dictionary is what two parsers may read in two ways.
var dictionary = []string{
	"\r", "\n", "\r\n", "\n\r", "\r\n\r\n", "\n\n", "\r\r\n", " ", "\t", "\v", "\f", "\x00", "\x7f", "\xa0", "\xff", "\u017f", ":", ";", ",", "\"", "\\",
	"0", "1", "9", "+", "-", "0x", "ffffffff", "%2e", "%2f", "%00", "/../", "//", "/..;/", "/secret", "http://y", "#", "?", "*",
	"Content-Length: 0\r\n", "Content-Length: 33\r\n", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n", "Transfer-Encoding: identity\r\n",
	"Transfer-Encoding:\r\n chunked\r\n", "Transfer-Encoding : chunked\r\n", "content_length: 1\r\n", "Connection: close\r\n", "Connection: keep-alive\r\n",
	"Connection: content-length\r\n", "Connection: upgrade\r\nUpgrade: h2c\r\n", "Expect: 100-continue\r\n", "Host: y\r\n", "Host: x\r\n", "TE: trailers\r\n",
	"Trailer: content-length\r\n", " HTTP/1.0\r\n", " HTTP/1.1\r\n", "0\r\n\r\n", "21\r\n", "GET ", "HEAD ", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", smuggled,
}

// raw draws a connection's bytes: one or two vectors, with a few changes.
func raw(t *rapid.T, bases []string) string {
	s := rapid.SampledFrom(bases).Draw(t, "base")
	if rapid.Bool().Draw(t, "two") {
		s += rapid.SampledFrom(bases).Draw(t, "second")
	}
	for range rapid.IntRange(0, 4).Draw(t, "changes") {
		at := rapid.IntRange(0, len(s)).Draw(t, "at")
		length := min(rapid.IntRange(0, 12).Draw(t, "length"), len(s)-at)
		switch rapid.IntRange(0, 4).Draw(t, "change") {
		case 0:
			s = s[:at] + rapid.SampledFrom(dictionary).Draw(t, "put in") + s[at:]
		case 1:
			s = s[:at] + s[at+length:]
		case 2:
			s = s[:at] + rapid.SampledFrom(dictionary).Draw(t, "put over") + s[at+length:]
		case 3: // a line twice
			start := strings.LastIndexByte(s[:at], '\n') + 1
			end := at + strings.IndexByte(s[at:], '\n') + 1
			s = s[:max(start, end)] + s[start:max(start, end)] + s[max(start, end):]
		case 4:
			s = s[:at] + strings.ToUpper(s[at:at+length]) + s[at+length:]
		}
	}
	return s
}

// pieces cuts s into what single writes send.
func pieces(t *rapid.T, s string) []string {
	cuts := rapid.SliceOfN(rapid.IntRange(0, len(s)), 0, 3).Draw(t, "cuts")
	slices.Sort(cuts)
	var list []string
	from := 0
	for _, c := range append(cuts, len(s)) {
		if c > from {
			list = append(list, s[from:c])
			from = c
		}
	}
	return list
}

// randomChecks is how many connections each back end gets, unless the flag
// -rapid.checks says otherwise.
const randomChecks = "400"

// TestRandom: whatever the corpus is changed into, back ends see what was
// admitted and nothing else. A failure is shrunk and printed as draws.
func TestRandom(t *testing.T) {
	needs(t)
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
	if !given {
		if err := flag.Set("rapid.checks", randomChecks); err != nil {
			t.Fatal(err)
		}
	}
	var bases []string
	for _, v := range corpus() {
		if len(v.raw) < 1000 {
			bases = append(bases, v.raw)
		}
	}
	slices.Sort(bases) // groups come in any order, and a failure must be found again
	for _, b := range backends() {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			p := startPair(t, b, options{rules: allowed(), protocol: protocols["declared"]})
			p.fence(t)
			rapid.Check(t, func(t *rapid.T) {
				s := raw(t, bases)
				p.send(t, pieces(t, s)...)
				o := p.fence(t)
				if o.hold(t); t.Failed() {
					t.Logf("sent: %q", s)
				}
			})
		})
	}
}
