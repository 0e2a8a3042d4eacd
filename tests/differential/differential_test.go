package differential

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

// allowed is the policy before the back ends: nothing but /ok and the fences.
func allowed() []*hauberkv1.Rule {
	return []*hauberkv1.Rule{requests([]string{"GET", "HEAD", "POST", "PUT", "OPTIONS"}, "/ok", "/fence")}
}

// outcome is what one connection's bytes led to.
type outcome struct {
	log  []admitted // what the server's sidecar read as requests
	sees []seen     // what the back end told
}

// send writes raw in the given pieces on a connection of its own, ends it, and
// reads until the sidecar ends it too.
func (p *pair) send(t fatal, pieces ...string) []byte {
	t.Helper()
	c, err := net.Dial("tcp", p.dial)
	if err != nil {
		t.Fatalf("dial the client's sidecar: %v", err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	read := make(chan []byte, 1)
	go func() {
		b, err := io.ReadAll(c)
		if err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the connection did not end: %v after %q", err, b)
		}
		read <- b
	}()
	for _, piece := range pieces {
		if _, err := io.WriteString(c, piece); err != nil {
			break // it was refused before its end
		}
	}
	_ = c.(*net.TCPConn).CloseWrite()
	return <-read
}

// fence sends a request that is known to pass, on a new connection, and takes
// what was told before it. An answer that is not its own is somebody else's.
func (p *pair) fence(t fatal) outcome {
	t.Helper()
	p.quiet(t)
	p.fences++
	target := fmt.Sprintf("/fence/%d", p.fences)
	answer := p.send(t, "GET "+target+" HTTP/1.1\r\nHost: fence\r\nConnection: close\r\n\r\n")
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 ")) || !bytes.HasSuffix(answer, []byte("\r\n\r\nseen GET "+target+"\n")) {
		t.Fatalf("the next client got another answer: %q", answer)
	}
	return outcome{
		log:  p.log.until(t, "fence in the access log", func(a admitted) bool { return a.Path == target }),
		sees: p.sees.until(t, "fence at the back end", func(s seen) bool { return s.Target == target }),
	}
}

// path is the path of a target as a back end saw it.
func path(s seen) string {
	target := s.Target
	if rest, ok := strings.CutPrefix(target, "http://"+s.Host); ok {
		target = rest
	}
	target, _, _ = strings.Cut(target, "?")
	return target
}

func hostname(authority string) string {
	if strings.HasPrefix(authority, "[") {
		host, _, _ := strings.Cut(authority, "]")
		return host + "]"
	}
	host, _, _ := strings.Cut(authority, ":")
	return host
}

// hold compares what was admitted with what was seen. What ended with the back
// end's own answer was seen once; what ended otherwise (a client that is gone, a
// body that broke off) was seen once or not at all; nothing else was seen.
func (o outcome) hold(t fatal) {
	t.Helper()
	next := 0
	fail := func(format string, args ...any) {
		t.Helper()
		t.Errorf(format+"\nadmitted: %+v\nseen: %s", append(args, o.log, o.sees)...)
	}
	for _, a := range o.log {
		if a.Verdict != "Allow" || a.Flag == "bad_request" && a.Method == "" {
			continue
		}
		if next == len(o.sees) {
			if a.Flag == "" && a.Status == 200 {
				fail("%s %s was admitted and answered, but the back end did not see it", a.Method, a.Path)
			}
			continue
		}
		s := o.sees[next]
		if s.Refused != "" || s.Status == 400 {
			if a.Status/100 == 2 {
				fail("%s %s was admitted and answered with %d, but the back end saw a malformed request", a.Method, a.Path, a.Status)
			}
			next++
			continue
		}
		same := s.Method == a.Method && path(s) == a.Path && hostname(s.Host) == a.Host
		if !same && (a.Flag != "" || a.Status/100 != 2) {
			continue // it did not reach the back end
		}
		if !same {
			fail("admitted %s %.60s of %q, seen %s %.60s of %q", a.Method, a.Path, a.Host, s.Method, path(s), s.Host)
			return
		}
		if s.Body != nil && !s.Coded && a.Flag == "" {
			if body, err := base64.StdEncoding.DecodeString(*s.Body); err != nil || len(body) != a.Received {
				fail("%s %s: admitted with %d bytes, seen with %d (%v)", a.Method, a.Path, a.Received, len(body), err)
			}
		}
		next++
	}
	if next < len(o.sees) {
		fail("the back end saw what nobody admitted")
	}
	for _, s := range o.sees {
		if strings.HasPrefix(path(s), "/secret") {
			fail("the back end saw what is denied")
		}
		if u := strings.ToLower(s.Upgrade); strings.HasPrefix(u, "h2") || strings.HasPrefix(u, "http") {
			fail("the back end was asked to speak %s, whose requests nobody would read", s.Upgrade)
		}
	}
}

// brokeOff says that the only request was admitted and then ended without its
// body's end: the back end may have seen its head. Where nothing is wrong with the
// head, it may even have answered before the body broke off.
func (o outcome) brokeOff(raw string) bool {
	return len(o.log) == 1 && o.log[0].Verdict == "Allow" && len(o.sees) <= 1 &&
		(o.log[0].Flag != "" || strings.HasPrefix(raw, post(chunked, "")))
}

func (s seen) String() string {
	if s.Refused != "" {
		return "refused: " + s.Refused
	}
	return fmt.Sprintf("%s %.60s of %q (status %d)", s.Method, s.Target, s.Host, s.Status)
}

// protocols are a port that is declared to be HTTP and one that is found out.
var protocols = map[string]hauberkv1.AppProtocol{"declared": hauberkv1.AppProtocol_APP_PROTOCOL_HTTP1, "detected": 0}

// TestCorpus: of each connection of the corpus, each back end sees the requests
// that the vector says and the sidecar admitted, and no other.
func TestCorpus(t *testing.T) {
	needs(t)
	for _, b := range backends() {
		for name, protocol := range protocols {
			t.Run(b.name+" "+name, func(t *testing.T) {
				t.Parallel()
				p := startPair(t, b, options{rules: allowed(), protocol: protocol})
				p.fence(t)
				for _, v := range corpus() {
					t.Run(v.name, func(t *testing.T) {
						p.send(t, v.raw)
						o := p.fence(t)
						o.hold(t)
						if slices.Contains(v.stricter, b.name) || v.breaks && len(o.sees) <= 1 || v.sees == nil && o.brokeOff(v.raw) {
							return
						}
						var got []string
						for _, s := range o.sees {
							target := s.Target
							if rest, ok := strings.CutPrefix(target, "http://"+s.Host); ok {
								target = rest
							}
							got = append(got, s.Method+" "+target)
						}
						if d := cmp.Diff(v.sees, got); d != "" {
							t.Errorf("seen by %s (-want +got):\n%s\nadmitted: %+v", b.name, d, o.log)
						}
					})
				}
			})
		}
	}
}
