package main

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

func TestEncrypted(t *testing.T) {
	hello := "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03\x03"
	data := "\x17\x03\x03\x00\x02\xaa\xbb"
	for _, tt := range []struct {
		name, said string
		wrong      string
	}{
		{"tls", hello + data + data, ""},
		{"clear", "GET /v2/keys HTTP/1.1\r\n", "in clear"},
		{"clear beside tls", hello + data + owner, "in clear"},
		{"neither", "SSH-2.0-x", "no TLS record"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen, err := encrypted([]byte(tt.said))
			if tt.wrong == "" && (err != nil || !strings.Contains(seen, "1 ClientHello, 2 encrypted records")) {
				t.Errorf("seen %q, error %v", seen, err)
			}
			if tt.wrong != "" && (err == nil || !strings.Contains(err.Error(), tt.wrong)) {
				t.Errorf("error %v, want %q", err, tt.wrong)
			}
		})
	}
}

func TestSealed(t *testing.T) {
	packet := func(from, to string, protocol byte, payload string) stage.Packet {
		return stage.Packet{Source: netip.MustParseAddrPort(from), Destination: netip.MustParseAddrPort(to), Protocol: protocol, Payload: []byte(payload)}
	}
	tunnel := packet("10.101.77.11:51871", "10.101.77.12:51871", stage.UDP, "sealed")
	api := packet("10.101.77.11:40000", "10.101.77.2:6443", stage.TCP, "tls")
	for _, tt := range []struct {
		name  string
		seen  []stage.Packet
		wrong string
	}{
		{"tunnel", []stage.Packet{api, tunnel}, ""},
		{"nothing", nil, "none of them WireGuard's"},
		{"no tunnel", []stage.Packet{api}, "none of them WireGuard's"},
		{"pod to pod", []stage.Packet{tunnel, packet("10.244.1.5:1", "10.244.2.6:2379", stage.TCP, "")}, "outside of the tunnel"},
		{"pod to pod by ip6", []stage.Packet{tunnel, packet("[fd00:10:244:1::5]:1", "[fd00:10:244:2::6]:53", stage.UDP, "")}, "outside of the tunnel"},
		{"in clear behind nat", []stage.Packet{tunnel, packet("10.101.77.11:1", "10.244.2.6:2379", stage.TCP, "GET /v2/keys")}, "in clear"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := sealed(tt.seen)
			if tt.wrong == "" && err != nil {
				t.Error(err)
			}
			if tt.wrong != "" && (err == nil || !strings.Contains(err.Error(), tt.wrong)) {
				t.Errorf("error %v, want %q", err, tt.wrong)
			}
		})
	}
}

func id(account string) string { return "spiffe://cluster.local/ns/yaobank/sa/" + account }

func wholeTrace() []span {
	return []span{
		{service: "database", kind: "server", id: "5", parent: "4", source: id("summary"), destination: id("database")},
		{service: "customer", kind: "server", id: "1", parent: "0", destination: id("customer")},
		{service: "customer", kind: "client", id: "2", parent: "1", source: id("customer"), destination: id("summary")},
		{service: "summary", kind: "server", id: "3", parent: "2", source: id("customer"), destination: id("summary")},
		{service: "summary", kind: "client", id: "4", parent: "3", source: id("summary"), destination: id("database")},
	}
}

func TestOneTrace(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func([]span) []span
		wrong  string
	}{
		{"whole, in any order", func(s []span) []span { return s }, ""},
		{"one is missing", func(s []span) []span { return s[1:] }, "no server span of database"},
		{"another's identity", func(s []span) []span { s[3].source = id("visitor"); return s }, "the server span of summary goes from"},
		{"broken in two", func(s []span) []span { s[4].parent = "9"; return s }, "client span of summary is not the child"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := oneTrace(tt.change(wholeTrace()))
			if tt.wrong == "" && err != nil {
				t.Error(err)
			}
			if tt.wrong != "" && (err == nil || !strings.Contains(err.Error(), tt.wrong)) {
				t.Errorf("error %v, want %q", err, tt.wrong)
			}
		})
	}
}

func TestSpansOf(t *testing.T) {
	line := func(trace string) string {
		return `{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"summary"}}]},"scopeSpans":[{"spans":[` +
			`{"traceId":"` + trace + `","spanId":"b","parentSpanId":"a","name":"GET","kind":3,"attributes":[{"key":"http.response.status_code","value":{"intValue":"200"}},` +
			`{"key":"hauberk.source.principal","value":{"stringValue":"s"}},{"key":"hauberk.destination.principal","value":{"stringValue":"d"}},` +
			`{"key":"hauberk.policy","value":{"stringValue":"p"}}]}]}]}]}` + "\n"
	}
	got, err := spansOf(line("t1")+line("t2"), "t1")
	if err != nil {
		t.Fatal(err)
	}
	want := []span{{service: "summary", kind: "client", name: "GET", id: "b", parent: "a", source: "s", destination: "d", policy: "p"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(span{})); diff != "" {
		t.Errorf("spans (-want +got):\n%s", diff)
	}
	if _, err := spansOf("cut{", "t1"); err == nil {
		t.Error("no error for a file that is not JSON")
	}
}

func TestChosen(t *testing.T) {
	names := func(chosen []Act) (out []string) {
		for _, a := range chosen {
			out = append(out, a.Name)
		}
		return out
	}
	for _, tt := range []struct {
		name string
		o    options
		want []string
		bad  bool
	}{
		{"only, in the given order", options{only: "trace, mesh"}, []string{"trace", "mesh"}, false},
		{"from", options{from: "job"}, []string{"job", "alone"}, false},
		{"all", options{}, names(acts), false},
		{"unknown", options{only: "jobs"}, nil, true},
		{"unknown from", options{from: "x"}, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.o.chosen()
			if (err != nil) != tt.bad {
				t.Fatalf("error %v", err)
			}
			if diff := cmp.Diff(tt.want, names(got)); diff != "" {
				t.Errorf("acts (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPlay plays acts of its own: what is printed, and the exit code.
func TestPlay(t *testing.T) {
	step := func(err error) func(context.Context, *stage.Stage, *Report) {
		return func(ctx context.Context, _ *stage.Stage, r *Report) {
			r.Step(ctx, Step{Type: "do it", Expect: "it is done", Look: []string{"the log"}, See: func(context.Context) (string, error) { return "something", err }})
		}
	}
	for _, tt := range []struct {
		name string
		play func(context.Context, *stage.Stage, *Report)
		code int
		says []string
	}{
		{"as expected", step(nil), 0, []string{"$ do it", "expected  it is done", "seen      something", "✓", "Every act was as expected, 1 checks"}},
		{"not as expected", step(errors.New("not done")), 1, []string{"✗", "differs   not done", "look at   the log", "1 of 1 acts were not as expected: a"}},
		{"skipped", func(_ context.Context, _ *stage.Stage, r *Report) { r.Skip("no pods") }, 1, []string{"✗ no pods"}},
		{"an act without a step proves nothing", func(context.Context, *stage.Stage, *Report) {}, 1, []string{"1 of 1 acts"}},
		{"an act that comes true in time", func(ctx context.Context, _ *stage.Stage, r *Report) {
			tries := 0
			r.Step(ctx, Step{Expect: "the second try", Within: time.Minute, See: func(context.Context) (string, error) {
				if tries++; tries < 2 {
					return "", errNone
				}
				return "now", nil
			}})
		}, 0, []string{"seen      now"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			r := newReport(&out)
			r.play(t.Context(), nil, Act{Name: "a", Title: "title", Why: "why", Play: tt.play})
			if code := r.finish(time.Second); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for _, s := range tt.says {
				if !strings.Contains(out.String(), s) {
					t.Errorf("does not say %q:\n%s", s, out.String())
				}
			}
			if strings.Contains(out.String(), "\x1b") {
				t.Error("colours where there is no terminal")
			}
		})
	}
}
