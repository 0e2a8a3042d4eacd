package verdict

import (
	"bytes"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/hauberk-mesh/hauberk/control/source"
	"github.com/hauberk-mesh/hauberk/policy"
)

// documented are the manifests of the documentation's examples, by line.
func documented(t *testing.T) map[int]string {
	t.Helper()
	page, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := map[int]string{}
	line := 1
	for i, part := range strings.Split(string(page), "```") {
		if yaml, ok := strings.CutPrefix(part, "yaml\n"); ok && i%2 == 1 {
			examples[line] = yaml
		}
		line += strings.Count(part, "\n")
	}
	if len(examples) < 20 {
		t.Fatalf("found %d examples: the test would prove little", len(examples))
	}
	return examples
}

// bankWith is the documentation's bank with manifests.
func bankWith(t *testing.T, manifests string) *world {
	t.Helper()
	bank, err := os.ReadFile("../../tests/docs/testdata/bank.yaml")
	if err != nil {
		t.Fatal(err)
	}
	o := &source.Objects{TrustDomain: "cluster.local"}
	for _, text := range []string{string(bank), manifests} {
		if _, err := o.Add(bytes.NewReader([]byte(text))); err != nil {
			t.Fatal(err)
		}
	}
	completePods(o)
	return newWorld(source.FactsFrom(o))
}

// What diff says of a pair is what both worlds say of each of its flows: of
// ports and requests that were not tried as of those that were, and of pairs
// that were not asked.
func TestDiffIsExact(t *testing.T) {
	paths := []string{"/", "/health", "/v2/keys", "/v2/keys/a", "/v2/keysmith", "/users/7", "/users/7/keys", "/orders/2026", "/bank.v1.Accounts/Get"}
	before := bankWith(t, "")
	for line, text := range documented(t) {
		t.Run("line "+strconv.Itoa(line), func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(line), 0))
			after := bankWith(t, text)
			d := &differ{before: before, after: after, bounded: map[string]bool{}}
			all, alone := classes(before, after)
			if len(alone) > 0 {
				t.Errorf("pods of one world only: %v", alone)
			}
			report := compare(before, after)
			if report.Asked > 0 && len(report.Changes) == 0 && !strings.Contains(text, "mode: Audit") {
				t.Error("the example changes nothing")
			}
			for _, from := range all {
				for _, to := range all {
					if !from.pod() && !to.pod() {
						continue
					}
					source, destination := pick(from, to)
					found := newFlowSet()
					if from.egress || to.ingress || from.changed || to.changed {
						found = d.flows(source, destination)
					}
					for range 40 {
						s := span{protocol: []policy.Protocol{policy.TCP, policy.TCP, policy.UDP, policy.ICMP}[r.IntN(4)]}
						s.first = []int{1 + r.IntN(65535), 2379, 8080, 443, 53, 9000 + r.IntN(12), 65535}[r.IntN(7)]
						var http *policy.HTTPRequest
						switch s.protocol {
						case policy.ICMP:
							s.first, s.icmpType, s.icmpCode = 0, []uint8{0, 8, 13}[r.IntN(3)], uint8(r.IntN(2))
						case policy.TCP:
							if r.IntN(2) == 0 {
								http = &policy.HTTPRequest{Method: []string{"GET", "PUT", "POST"}[r.IntN(3)], Path: paths[r.IntN(len(paths))],
									Header: func(name string) []string { return map[string][]string{"content-type": {"application/grpc"}}[name] }}
							}
						}
						was := d.question(before, source.before, destination.before, s, http)
						will := d.question(after, source.after, destination.after, s, http)
						want := ""
						if was.Allowed != will.Allowed {
							want = map[bool]string{true: closes, false: opens}[was.Allowed] + was.reason() + will.reason()
						}
						if got := found.at(s, http); !slices.Contains(got, want) {
							t.Fatalf("%s → %s %v %+v: the diff says %q, both worlds %q", from.name, to.name, s, http, got, want)
						}
					}
				}
			}
		})
	}
}

// at is what may happen to a flow: what happens to its port as a whole, or to
// some of the requests there.
func (f *flowSet) at(s span, http *policy.HTTPRequest) []string {
	out := []string{}
	for key, byRequests := range f.spans {
		for requests, spans := range byRequests {
			for _, have := range spans {
				of := have.protocol == s.protocol && have.first <= s.first && s.first <= have.last
				if s.protocol == policy.ICMP {
					of = have.protocol == s.protocol // there are but few messages
				}
				if of {
					out = append(out, key.change+key.was+key.will)
				}
				if of && s.protocol != policy.ICMP && (requests == "" || http == nil && strings.HasPrefix(requests, "not HTTP")) {
					return []string{key.change + key.was + key.will}
				}
			}
		}
	}
	if http == nil && s.protocol != policy.ICMP {
		return []string{""} // else it would have been found above
	}
	return append(out, "")
}

// The spans of a protocol's ports are all of them, once.
func TestSpansCoverPorts(t *testing.T) {
	rule := func(m ...policy.PortMatch) *policy.Rule { return &policy.Rule{Ports: m} }
	r := rules{
		rule(policy.PortMatch{Protocol: policy.TCP, Port: 1}, policy.PortMatch{Protocol: policy.TCP, Port: 65535}),
		rule(policy.PortMatch{Protocol: policy.TCP, Port: 80, EndPort: 90}, policy.PortMatch{Protocol: policy.TCP, Port: 85, EndPort: 65535}),
		rule(policy.PortMatch{Protocol: policy.UDP, Port: 53}),
	}
	nobody := &member{&end{}, &end{}}
	next := map[policy.Protocol]int{policy.TCP: 1, policy.UDP: 1, policy.SCTP: 1}
	for _, s := range r.spans(nobody, policy.ICMP) {
		if s.protocol == policy.ICMP {
			continue
		}
		if s.first != next[s.protocol] || s.last < s.first {
			t.Errorf("%s: %d-%d comes where %d is next", s.protocol, s.first, s.last, next[s.protocol])
		}
		next[s.protocol] = s.last + 1
	}
	for protocol, n := range next {
		if n != 65536 {
			t.Errorf("%s ends before %d", protocol, n)
		}
	}
}

func TestSpansText(t *testing.T) {
	tcp := func(first, last int) span { return span{protocol: policy.TCP, first: first, last: last} }
	tests := []struct {
		name     string
		spans    []span
		requests string
		want     string
	}{
		{"all", []span{tcp(1, 79), tcp(80, 80), tcp(81, 65535)}, "", "TCP"},
		{"one", []span{tcp(80, 80)}, "", "TCP 80"},
		{"all but one", []span{tcp(1, 79), tcp(81, 65535)}, "", "TCP except 80"},
		{"ranges", []span{tcp(80, 90), tcp(443, 443)}, "", "TCP 80-90, 443"},
		{"requests", []span{tcp(80, 80)}, "GET of /a", "TCP 80: GET of /a"},
		{"two protocols", []span{tcp(80, 80), {protocol: policy.UDP, first: 1, last: 65535}}, "", "TCP 80|UDP"},
		{"messages", []span{{protocol: policy.ICMP, label: "type 8", kinds: 2}}, "", "ICMP type 8"},
		{"any message", []span{{protocol: policy.ICMP, label: "other messages", kinds: 1}}, "", "ICMP"},
	}
	for _, tt := range tests {
		if got := strings.Join(spansText(tt.spans, tt.requests), "|"); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
