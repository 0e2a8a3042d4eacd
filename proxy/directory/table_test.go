package directory

import (
	"fmt"
	"testing"
	"time"
)

// counted is a table that tells what it subscribed to.
func counted(limit int) (*table[Workload], map[string]int) {
	live := make(map[string]int)
	t := newTable[Workload](limit)
	t.bind(func(n string) { live[n]++ }, func(n string) {
		if live[n]--; live[n] == 0 {
			delete(live, n)
		}
	})
	return t, live
}

func touch(t *table[Workload], name string) { t.hold(name, time.Unix(0, 0)).release() }

// TestRotatingNames is a client that comes from a new address each time: it
// must not push out what is asked for again and again.
func TestRotatingNames(t *testing.T) {
	const limit = 100
	table, live := counted(limit)
	hot := make([]string, limit/2)
	for i := range hot {
		hot[i] = fmt.Sprintf("hot/%d", i)
	}
	for range 2 { // asked for twice, which is what makes them hot
		for _, n := range hot {
			touch(table, n)
		}
	}
	for i := range 50 * limit {
		touch(table, fmt.Sprintf("ip/%d", i))
	}
	for _, n := range hot {
		if live[n] != 1 {
			t.Errorf("%s was pushed out by names that were asked for once", n)
		}
	}
	if len(live) != limit || len(table.entries) != limit {
		t.Errorf("%d subscriptions and %d entries, want %d", len(live), len(table.entries), limit)
	}
}

func TestEvictionOrder(t *testing.T) {
	for _, tc := range []struct {
		name  string
		limit int
		names []string
		want  []string
	}{
		{"the oldest of those asked for once", 3, []string{"a", "b", "c", "d"}, []string{"b", "c", "d"}},
		{"asked for again counts as new", 3, []string{"a", "b", "c", "a", "d"}, []string{"a", "c", "d"}},
		{"what was hot once gives way to what is hot", 4,
			[]string{"a", "a", "b", "b", "c", "c", "d", "d", "e", "e", "f", "f", "g", "h"}, []string{"d", "e", "f", "h"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table, live := counted(tc.limit)
			for _, n := range tc.names {
				touch(table, n)
			}
			for _, n := range tc.want {
				if live[n] != 1 {
					t.Errorf("%s is gone; there are %v", n, live)
				}
			}
			if len(live) != len(tc.want) {
				t.Errorf("got %v, want %v", live, tc.want)
			}
		})
	}
}

// TestHeldIsKept: what live connections hold stays, beyond the limit if need
// be, and gives way once it is let go.
func TestHeldIsKept(t *testing.T) {
	table, live := counted(2)
	var held []*entry[Workload]
	for i := range 4 {
		held = append(held, table.hold(fmt.Sprint(i), time.Unix(0, 0)))
	}
	second := table.hold("0", time.Unix(0, 0)) // held by two
	held[0].release()
	if len(live) != 4 {
		t.Fatalf("held entries were evicted: %v", live)
	}
	for _, e := range held[1:] {
		e.release()
	}
	if live["0"] != 1 || len(live) != 2 {
		t.Fatalf("back below the limit: got %v, want 0 and one other", live)
	}
	second.release()
	touch(table, "x")
	touch(table, "y")
	if len(live) != 2 {
		t.Fatalf("got %v, want two", live)
	}
	table.sweep(time.Now().Add(time.Hour))
	if len(live) != 0 || len(table.entries) != 0 {
		t.Errorf("swept, but there are %v", live)
	}
}

// BenchmarkRotatingNames is the cost of one more address at the limit: it must
// not depend on how many there are.
func BenchmarkRotatingNames(b *testing.B) {
	for _, limit := range []int{64, 1024, maxWorkloads} {
		b.Run(fmt.Sprint(limit), func(b *testing.B) {
			table := newTable[Workload](limit)
			table.bind(func(string) {}, func(string) {})
			names := make([]string, 4*limit)
			for i := range names {
				names[i] = fmt.Sprintf("ip/10.%d.%d.%d", i>>16&255, i>>8&255, i&255)
			}
			now := time.Now()
			i := 0
			for b.Loop() {
				table.hold(names[i%len(names)], now).release()
				i++
			}
		})
	}
}

func BenchmarkHotName(b *testing.B) {
	table := newTable[Workload](maxWorkloads)
	now := time.Now()
	for b.Loop() {
		table.hold("ip/10.0.0.1", now).release()
	}
}
