package run

import "sync"

// AtOnce is how many pods are asked at the same time.
const AtOnce = 16

// Each calls f for every item, at most AtOnce at a time, and returns the
// results in the order of the items.
func Each[T, R any](items []T, f func(T) R) []R {
	out := make([]R, len(items))
	slots := make(chan struct{}, AtOnce)
	var wg sync.WaitGroup
	for i := range items {
		slots <- struct{}{}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() { <-slots }()
			out[i] = f(items[i])
		}()
	}
	wg.Wait()
	return out
}
