package main

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestHistogramAgreesWithSorting holds quantiles to within one per cent of what
// sorting all values says.
func TestHistogramAgreesWithSorting(t *testing.T) {
	for _, top := range []int64{100, 50_000, 20_000_000, 3_600_000_000_000} {
		var h histogram
		var all []time.Duration
		for range 20_000 {
			d := time.Duration(rand.Int64N(top))
			h.record(d)
			all = append(all, d)
		}
		slices.Sort(all)
		for _, q := range []float64{0, 0.5, 0.9, 0.99, 0.999, 1} {
			want := all[int(q*float64(len(all)-1))]
			got := h.quantile(q)
			if diff := got - want; diff.Abs() > want/100+1 {
				t.Errorf("values below %d: quantile %v: got %v, want %v within 1 %%", top, q, got, want)
			}
		}
	}
}

func TestHistogramMerges(t *testing.T) {
	var a, b histogram
	a.record(time.Millisecond)
	b.record(3 * time.Millisecond)
	b.record(5 * time.Millisecond)
	a.merge(&b)
	if a.n != 3 || a.max != 5*time.Millisecond {
		t.Errorf("got %d values up to %v, want 3 up to 5ms", a.n, a.max)
	}
	if got := a.quantile(0.5); (got - 3*time.Millisecond).Abs() > 30*time.Microsecond {
		t.Errorf("median: got %v, want 3ms", got)
	}
	if got := (&histogram{}).quantile(0.5); got != 0 {
		t.Errorf("median of nothing: got %v, want 0", got)
	}
}
