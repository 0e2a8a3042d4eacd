package upstream

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hauberk-mesh/hauberk/proxy/directory"
)

// TestPickHolds: of any endpoints in any state the choice is one of those that
// Pick's comment promises, and each of them comes up.
func TestPickHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1e9, 0)
		zone := ""
		s := New(Options{Zone: func() string { return zone }, TLS: func(_, uid string, _ ...string) (*tls.Config, error) { return &tls.Config{ServerName: uid}, nil }})
		d := &directory.Destination{Kind: rapid.SampledFrom([]string{"Service", "Pod"}).Draw(t, "kind")}
		zones := map[string]bool{}
		for i := range rapid.IntRange(0, 40).Draw(t, "endpoints") {
			e := directory.Endpoint{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80), PodUID: fmt.Sprint(i),
				SPIFFEID: "spiffe://x/a", Ready: rapid.IntRange(0, 5).Draw(t, "ready") > 0, Terminating: rapid.IntRange(0, 5).Draw(t, "terminating") == 0,
				Zone: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "zone")}
			zones[e.Zone] = true
			d.Endpoints = append(d.Endpoints, e)
		}
		d.Zones = len(zones)
		zone = rapid.SampledFrom([]string{"", "a", "b", "d"}).Draw(t, "own zone")

		list, _ := s.resolve(nil, d, now)
		var tried []Choice
		for i, e := range list {
			if e == nil {
				continue
			}
			for range rapid.IntRange(0, 3).Draw(t, "failures") {
				e.failed(now.Add(-time.Duration(rapid.IntRange(0, 9000).Draw(t, "ago")) * time.Millisecond))
			}
			if rapid.IntRange(0, 7).Draw(t, "tried") == 0 {
				tried = append(tried, Choice{Endpoint: d.Endpoints[i], e: e})
			}
		}

		for round := 0; ; round++ {
			want, fails := expected(d, list, tried, zone, now)
			if len(want) == 0 {
				if c, err := s.pick(d, tried, now); err == nil {
					t.Fatalf("chose %s of nothing", c.Endpoint.PodUID)
				}
				return
			}
			if !fails {
				// Nothing changes with what is chosen: each must come up.
				got := map[string]bool{}
				for range 60 * len(want) {
					c, err := s.pick(d, tried, now)
					if err != nil || !want[c.Endpoint.PodUID] {
						t.Fatalf("chose %q of %v, %v", c.Endpoint.PodUID, want, err)
					}
					got[c.Endpoint.PodUID] = true
				}
				if len(got) != len(want) {
					t.Fatalf("only %v are chosen of %v", got, want)
				}
				return
			}
			c, err := s.pick(d, tried, now)
			if err != nil || !want[c.Endpoint.PodUID] {
				t.Fatalf("chose %q of %v, %v", c.Endpoint.PodUID, want, err)
			}
			if round == 60 {
				return
			}
		}
	})
}

// expected is the naive way: everything that may be used, then less and less of
// it. fails says that some of it has failed before.
func expected(d *directory.Destination, list []*endpoint, tried []Choice, zone string, now time.Time) (want map[string]bool, fails bool) {
	crowded := tooManyAside(d, list, now)
	ranks := map[string]int{}
	best := -100
	for i, e := range list {
		if e == nil || slices.ContainsFunc(tried, func(c Choice) bool { return c.e == e }) {
			continue
		}
		rank := rankOf(d, &d.Endpoints[i])
		if e.aside(now, crowded) {
			rank -= rankReady
		}
		ranks[d.Endpoints[i].PodUID] = rank
		best = max(best, rank)
		fails = fails || e.fails.Load() > 0
	}
	want = map[string]bool{}
	near := map[string]bool{}
	for _, e := range d.Endpoints {
		if rank, ok := ranks[e.PodUID]; ok && rank == best {
			want[e.PodUID] = true
			if e.Zone == zone {
				near[e.PodUID] = true
			}
		}
	}
	if best == rankReady && len(near) >= 2 && 10*len(near)*d.Zones >= 8*len(want) {
		want = near
	}
	return want, fails
}

// TestAsideIsBounded: where more than half are set aside, none is for longer than
// a second; where fewer are, the time doubles, and one request at a time finds
// out whether it is over.
func TestAsideIsBounded(t *testing.T) {
	s := New(Options{TLS: func(string, string, ...string) (*tls.Config, error) { return &tls.Config{}, nil }})
	d := &directory.Destination{Kind: "Service"}
	for i := range 5 {
		d.Endpoints = append(d.Endpoints, directory.Endpoint{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80),
			PodUID: fmt.Sprint(i), SPIFFEID: "spiffe://x/a", Ready: true})
	}
	start := time.Unix(1e9, 0)
	list, _ := s.resolve(nil, d, start)
	chosen := func(now time.Time) map[string]bool {
		t.Helper()
		got := map[string]bool{}
		for range 300 {
			c, err := s.pick(d, nil, now)
			if err != nil {
				t.Fatal(err)
			}
			got[c.Endpoint.PodUID] = true
		}
		return got
	}
	for _, e := range list[:2] {
		for range 4 {
			e.failed(start) // for 8 s by now
		}
	}
	if got := chosen(start.Add(7 * time.Second)); got["0"] || got["1"] || len(got) != 3 {
		t.Errorf("two of five failed: %v are used", got)
	}
	list[2].failed(start.Add(7 * time.Second))
	if got := chosen(start.Add(7100 * time.Millisecond)); !got["0"] || !got["1"] || got["2"] {
		t.Errorf("three of five failed, two of them more than a second ago: %v are used", got)
	}
	// Each of the two was given to one request; until that has found out, nobody else.
	if got := chosen(start.Add(7200 * time.Millisecond)); got["0"] || got["1"] || got["2"] || len(got) != 2 {
		t.Errorf("while two are on trial: %v are used", got)
	}
	list[0].worked()
	if got := chosen(start.Add(7300 * time.Millisecond)); !got["0"] || got["1"] {
		t.Errorf("one came back: %v are used", got)
	}
}

// TestZonePreference: the own zone is preferred where its endpoints are enough.
func TestZonePreference(t *testing.T) {
	for name, tc := range map[string]struct {
		zones string // of each endpoint; '-' for an unknown one
		own   string
		want  string // zones that are used
	}{
		"even":                           {"aabbcc", "a", "a"},
		"more than its share":            {"aaabc", "a", "a"},
		"less than its share":            {"aabbbbbb", "a", "ab"},
		"one only":                       {"abc", "a", "abc"},
		"none":                           {"bbcc", "a", "bc"},
		"one zone":                       {"aaa", "a", "a"},
		"own unknown":                    {"aabb", "", "ab"},
		"an endpoint's unknown":          {"aab-", "a", "ab-"},
		"four fifths of the share do it": {"aaaabbbbbb", "a", "a"},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(Options{Zone: func() string { return tc.own }, TLS: func(string, string, ...string) (*tls.Config, error) { return &tls.Config{}, nil }})
			d := &directory.Destination{Kind: "Service"}
			zones := map[rune]bool{}
			for i, z := range tc.zones {
				e := directory.Endpoint{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80), PodUID: fmt.Sprint(i),
					SPIFFEID: "spiffe://x/a", Ready: true}
				if z != '-' {
					e.Zone = string(z)
				}
				zones[z] = true
				d.Endpoints = append(d.Endpoints, e)
			}
			if !zones['-'] {
				d.Zones = len(zones)
			}
			used := map[byte]bool{}
			for range 300 {
				c, err := s.Pick(d, nil)
				if err != nil {
					t.Fatal(err)
				}
				z := byte('-')
				if c.Endpoint.Zone != "" {
					z = c.Endpoint.Zone[0]
				}
				used[z] = true
			}
			got := ""
			for _, z := range []byte("abc-") {
				if used[z] {
					got += string(z)
				}
			}
			if got != tc.want {
				t.Errorf("of %s, at home in %q, zones %q are used, want %q", tc.zones, tc.own, got, tc.want)
			}
		})
	}
}
