package flow

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hauberk-mesh/hauberk/policy"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// byAddress compares addresses, which cmp can't look into.
var byAddress = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func record(n int, verdict string) Record {
	return Record{Time: noon.Add(time.Duration(n) * time.Second), Verdict: verdict, Layer: Kernel, Port: uint16(n)}
}

func ports(recs []Record) []int {
	out := []int{}
	for _, r := range recs {
		out = append(out, int(r.Port))
	}
	return out
}

func TestRingKeepsTheLast(t *testing.T) {
	r := NewRing(3, 0)
	for n := range 2 {
		r.Add(record(n+1, Deny))
	}
	if d := cmp.Diff([]int{1, 2}, ports(r.Recent(Filter{}))); d != "" {
		t.Errorf("before it is full (-want +got):\n%s", d)
	}
	r.Add(record(100, Allow)) // for followers only
	for n := range 5 {
		r.Add(record(n+3, Deny))
	}
	if d := cmp.Diff([]int{5, 6, 7}, ports(r.Recent(Filter{}))); d != "" {
		t.Errorf("after two turns (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]int{7}, ports(r.Recent(Filter{Since: noon.Add(6 * time.Second)}))); d != "" {
		t.Errorf("since (-want +got):\n%s", d)
	}
	if r.Added() != 8 {
		t.Errorf("added %d", r.Added())
	}
}

// TestSlowReaderLosesAndIsTold: adding never waits.
func TestSlowReaderLosesAndIsTold(t *testing.T) {
	r := NewRing(1, 0)
	_, s := r.Subscribe(Filter{Verdict: Deny})
	_, other := r.Subscribe(Filter{Layer: Sidecar})
	for n := range queue + 10 {
		r.Add(record(n, Deny))
	}
	for n := range queue {
		if rec := <-s.Records(); int(rec.Port) != n || rec.Lost != 0 {
			t.Fatalf("record %d is %d and lost %d", n, rec.Port, rec.Lost)
		}
	}
	r.Add(record(9999, Deny))
	if rec := <-s.Records(); rec.Port != 9999 || rec.Lost != 10 {
		t.Errorf("the next is %d and lost %d; want 9999 and 10", rec.Port, rec.Lost)
	}
	if len(other.Records()) != 0 {
		t.Error("a record that its filter does not want arrived")
	}
	s.Close()
	s.Close()
	if _, ok := <-s.Records(); ok {
		t.Error("a closed subscription gave a record")
	}
	r.Close()
	if _, ok := <-other.Records(); ok {
		t.Error("a subscription outlived its ring")
	}
	if _, late := r.Subscribe(Filter{}); true {
		if _, ok := <-late.Records(); ok {
			t.Error("a closed ring gave a record")
		}
		late.Close()
	}
	r.Add(record(1, Deny)) // nobody is there, and nothing breaks
}

func TestAllowedIsMadeOnlyForThoseWhoAsk(t *testing.T) {
	r := NewRing(10, 0)
	if r.Wants(Allow) || !r.Wants(Deny) {
		t.Error("without a reader: denials only")
	}
	_, denials := r.Subscribe(Filter{Verdict: Deny})
	if r.Wants(Allow) {
		t.Error("a reader of denials made allowed flows wanted")
	}
	_, all := r.Subscribe(Filter{})
	if !r.Wants(Allow) {
		t.Error("a reader of everything did not make allowed flows wanted")
	}
	all.Close()
	if r.Wants(Allow) {
		t.Error("allowed flows are wanted by nobody")
	}
	denials.Close()
	var none *Ring
	if none.Wants(Deny) {
		t.Error("no ring wants")
	}
}

// TestLimit: what the limit refuses is never built, and the next record tells it.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRing(100, 10)
		built := 0
		offer := func() { r.Offer(func() Record { built++; return record(built, Deny) }) }
		for range 50 {
			offer()
		}
		if built != 20 {
			t.Errorf("%d of 50 at once were built; the burst is 20", built)
		}
		time.Sleep(time.Second)
		offer()
		recs := r.Recent(Filter{})
		if got := recs[len(recs)-1].Lost; built != 21 || got != 30 {
			t.Errorf("after a second %d were built, and %d told as lost; want 21 and 30", built, got)
		}
	})
}

func TestFilter(t *testing.T) {
	rec := Record{Time: noon, Verdict: Deny, Layer: Kernel, Port: 2379, Protocol: "TCP",
		Source:      Endpoint{Namespace: "bank", Pod: "customer-5d9-x2", Workload: "customer"},
		Destination: Endpoint{Namespace: "data", Pod: "database-0", Workload: "database"},
		Decision:    Decision{Tier: "default", Selecting: []string{"NetworkPolicy data/database-policy"}}}
	audited := Record{Time: noon, Verdict: Allow, Layer: Sidecar, Decision: Decision{Policy: "MeshPolicy bank/get", Tier: "app"},
		Audit: &Audit{Verdict: Deny, Decision: Decision{Policy: "ClusterMeshPolicy trial"}}}
	for _, tt := range []struct {
		name   string
		query  string
		record *Record
		want   bool
	}{
		{"nothing asked", "", &rec, true},
		{"the source's namespace", "namespace=bank", &rec, true},
		{"one of several namespaces", "namespace=other&namespace=data", &rec, true},
		{"another namespace", "namespace=other", &rec, false},
		{"a pod", "pod=database-0", &rec, true},
		{"the beginning of a pod", "pod=customer", &rec, true},
		{"no whole word of a pod", "pod=cust", &rec, false},
		{"namespace and pod of different ends", "namespace=bank&pod=database-0", &rec, false},
		{"namespace and workload of one end", "namespace=data&workload=database", &rec, true},
		{"verdict", "verdict=deny", &rec, true},
		{"another verdict", "verdict=ALLOW", &rec, false},
		{"all verdicts", "verdict=all", &rec, true},
		{"an audited verdict", "verdict=deny", &audited, true},
		{"layer", "layer=kernel", &rec, true},
		{"another layer", "layer=sidecar", &rec, false},
		{"port", "port=2379", &rec, true},
		{"another port", "port=80", &rec, false},
		{"policy whose silence denied, by name", "policy=database-policy", &rec, true},
		{"by namespace and name", "policy=data/database-policy", &rec, true},
		{"whole", "policy=NetworkPolicy+data/database-policy", &rec, true},
		{"part of a name", "policy=policy", &rec, false},
		{"policy that decided", "policy=bank/get", &audited, true},
		{"policy that would have decided", "policy=trial", &audited, true},
		{"since before", "since=2026-03-01T11:59:59Z", &rec, true},
		{"since its own time", "since=2026-03-01T12:00:00Z", &rec, false},
		{"since some minutes ago", "since=2m", &rec, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q, err := url.ParseQuery(tt.query)
			if err != nil {
				t.Fatal(err)
			}
			f, err := ParseFilter(q, noon.Add(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			if got := f.Match(tt.record); got != tt.want {
				t.Errorf("matches %t", got)
			}
			again, err := ParseFilter(f.Query(), noon)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(f, again); d != "" {
				t.Errorf("Query reads otherwise (-want +got):\n%s", d)
			}
		})
	}
	for _, bad := range []string{"verdict=maybe", "layer=cloud", "port=0", "port=70000", "since=yesterday", "since=-2m"} {
		q, _ := url.ParseQuery(bad)
		if _, err := ParseFilter(q, noon); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
}

func TestDecisionOf(t *testing.T) {
	ref := func(name string) policy.Ref {
		return policy.Ref{Kind: "NetworkPolicy", Namespace: "a", Name: name, UID: "u"}
	}
	tier := policy.Tier{Name: "default", Policies: []policy.Policy{{Ref: ref("one")}, {Ref: ref("trial"), Mode: policy.Audit}, {Ref: ref("two")}}}
	set := &policy.Set{Ingress: []policy.Tier{tier}}
	for _, tt := range []struct {
		name    string
		verdict policy.Verdict
		want    Decision
		says    string
	}{
		{"a rule", policy.Verdict{Tier: "default", Policy: ref("one"), Rule: "ingress[0]", Reason: policy.ReasonRule},
			Decision{Tier: "default", Policy: "NetworkPolicy a/one", Rule: "ingress[0]", Reason: policy.ReasonRule},
			"by NetworkPolicy a/one rule ingress[0] (tier default)"},
		{"the silence of a tier", policy.Verdict{Tier: "default", Reason: policy.ReasonTierDefault},
			Decision{Tier: "default", Selecting: []string{"NetworkPolicy a/one", "NetworkPolicy a/two"}, Reason: policy.ReasonTierDefault},
			"by NetworkPolicy a/one, NetworkPolicy a/two (tier default: no rule matched)"},
		{"a tier that is not known", policy.Verdict{Tier: "gone", Reason: "so"}, Decision{Tier: "gone", Reason: "so"}, "by tier gone: so"},
		{"the mesh's default", policy.Verdict{Reason: policy.ReasonDefaultDeny}, Decision{Reason: policy.ReasonDefaultDeny},
			"because " + policy.ReasonDefaultDeny},
	} {
		got := DecisionOf(set, &tt.verdict)
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
		if got.Says() != tt.says {
			t.Errorf("%s says %q, want %q", tt.name, got.Says(), tt.says)
		}
	}
	for range 10 {
		tier.Policies = append(tier.Policies, policy.Policy{Ref: ref("more")})
	}
	if got := Selecting(&tier); len(got) != maxSelecting+1 || got[maxSelecting] != "and others" {
		t.Errorf("of many policies it names %q", got)
	}
}

// TestHandler serves over a real socket: what is kept, then what comes, longer
// than the server's own deadline for requests.
func TestHandler(t *testing.T) {
	r := NewRing(10, 0)
	code := uint8(3)
	first := Record{Time: noon, Node: "n1", Direction: "Egress", Verdict: Deny, Layer: Kernel, Protocol: "ICMP", ICMPType: &code, ICMPCode: &code,
		Source: Endpoint{Namespace: "a", Pod: "b", Address: netip.MustParseAddr("10.0.0.1")}, Destination: Endpoint{Node: "n2"},
		Decision: Decision{Tier: "t", Policy: "MeshPolicy a/b", Rule: "r", Reason: "why"}}
	r.Add(first)
	r.Add(record(80, Deny))
	problem := "deaf"
	server := httptest.NewUnstartedServer(Handler(r, func() string { return problem }))
	server.Config.ReadTimeout = 200 * time.Millisecond
	server.Start()
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	get := func(query string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/flows?"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { res.Body.Close() })
		return res
	}
	res := get("policy=a/b")
	if got := res.Header.Get(ProblemHeader); got != problem {
		t.Errorf("problem %q", got)
	}
	var got []Record
	if err := Read(ctx, res.Body, func(r Record) error { got = append(got, r); return nil }); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]Record{first}, got, byAddress); d != "" {
		t.Errorf("what is kept (-want +got):\n%s", d)
	}
	if res := get("port=none"); res.StatusCode != http.StatusBadRequest {
		t.Errorf("a bad filter got %s", res.Status)
	}
	res = get("follow=1&port=80")
	seen := make(chan Record)
	ended := make(chan error, 1)
	go func() { ended <- Read(ctx, res.Body, func(r Record) error { seen <- r; return nil }) }()
	<-seen // what is kept
	time.Sleep(2 * server.Config.ReadTimeout)
	r.Add(first)
	r.Add(record(80, Deny))
	if rec := <-seen; rec.Port != 80 {
		t.Errorf("got %+v", rec)
	}
	r.Close()
	if err := <-ended; err != nil {
		t.Errorf("the end of the ring: %v", err)
	}
}

// TestShape pins the JSON form, which other programs read.
func TestShape(t *testing.T) {
	rec := Record{Time: noon, Node: "n1", Direction: "Ingress", Verdict: Deny, Layer: Sidecar, Protocol: "TCP", Port: 80,
		Source:      Endpoint{Namespace: "a", Pod: "b-1", Workload: "b", Principal: "spiffe://x/ns/a/sa/b", Address: netip.MustParseAddr("10.0.0.1")},
		Destination: Endpoint{Node: "n2"}, Request: &Request{Method: "GET", Path: "/", Host: "h"},
		Decision: Decision{Tier: "t", Policy: "MeshPolicy a/b", Rule: "r", Reason: "why"},
		Audit:    &Audit{Verdict: Allow, Decision: Decision{Tier: "t", Selecting: []string{"x"}}}, Lost: 2}
	b, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"time":"2026-03-01T12:00:00Z","node":"n1","direction":"Ingress","verdict":"Deny","layer":"sidecar",` +
		`"source":{"namespace":"a","pod":"b-1","workload":"b","principal":"spiffe://x/ns/a/sa/b","address":"10.0.0.1"},` +
		`"destination":{"node":"n2"},"protocol":"TCP","port":80,"request":{"method":"GET","path":"/","host":"h"},` +
		`"tier":"t","policy":"MeshPolicy a/b","rule":"r","reason":"why","audit":{"verdict":"Allow","tier":"t","selecting":["x"]},"lost":2}`
	if d := cmp.Diff(want, string(b)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if err := Read(t.Context(), strings.NewReader("{}\nnot json\n"), func(Record) error { return nil }); err == nil {
		t.Error("a line that is no record was read")
	}
}
