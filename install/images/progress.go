package main

import (
	"fmt"
	"io"
	"time"
)

// progress shows each step with the time it takes, on a terminal. It returns a
// function that begins a step, which returns one that ends it.
func progress(w io.Writer, terminal bool) func(what string) func() {
	if !terminal {
		return func(string) func() { return func() {} }
	}
	return func(what string) func() {
		start := time.Now()
		stop, stopped := make(chan struct{}), make(chan struct{})
		show := func(mark, end string) {
			fmt.Fprintf(w, "\r\x1b[K%s %s %.1fs%s", mark, what, time.Since(start).Seconds(), end)
		}
		show("·", "")
		go func() {
			defer close(stopped)
			ticker := time.NewTicker(200 * time.Millisecond)
			defer ticker.Stop()
			for {
				select {
				case <-ticker.C:
					show("·", "")
				case <-stop:
					return
				}
			}
		}()
		return func() {
			close(stop)
			<-stopped
			show("✓", "\n")
		}
	}
}
