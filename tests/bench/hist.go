package main

import (
	"math/bits"
	"time"
)

// subBits is how finely each power of two is divided: values are kept to
// within 1/128, better than one per cent.
const subBits = 7

// histogram counts durations in log-linear buckets. The zero histogram is
// empty. It is used by one goroutine at a time.
type histogram struct {
	counts [64 << subBits]uint32
	n      uint64
	max    time.Duration
}

func bucket(d time.Duration) int {
	v := uint64(max(d, 0))
	if v < 1<<subBits {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return (shift+1)<<subBits + int(v>>shift) - 1<<subBits
}

// value is the middle of a bucket.
func value(b int) time.Duration {
	if b < 1<<subBits {
		return time.Duration(b)
	}
	shift := b>>subBits - 1
	low := uint64(b&(1<<subBits-1)|1<<subBits) << shift
	return time.Duration(low + 1<<shift/2)
}

func (h *histogram) record(d time.Duration) {
	h.counts[bucket(d)]++
	h.n++
	h.max = max(h.max, d)
}

func (h *histogram) merge(o *histogram) {
	for i, c := range o.counts {
		h.counts[i] += c
	}
	h.n += o.n
	h.max = max(h.max, o.max)
}

// quantile is the value below which a share q of what was recorded lies; 0 of
// nothing.
func (h *histogram) quantile(q float64) time.Duration {
	if h.n == 0 {
		return 0
	}
	want := uint64(q*float64(h.n-1)) + 1
	var seen uint64
	for i, c := range h.counts {
		if seen += uint64(c); seen >= want {
			return min(value(i), h.max)
		}
	}
	return h.max
}
