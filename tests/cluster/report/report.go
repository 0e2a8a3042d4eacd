// Package report owns what the cluster program says while it works: steps
// with elapsed times for someone who watches, essentials only in a pipe.
package report

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// Reporter writes progress. Its methods may be called from any goroutine.
type Reporter struct {
	out     io.Writer
	verbose bool
	started time.Time
	mu      sync.Mutex // one line at a time
}

// New reports to w: everything if verbose, else what matters only.
func New(w io.Writer, verbose bool) *Reporter {
	return &Reporter{out: w, verbose: verbose, started: time.Now()}
}

// Watched says whether someone follows f: it is a terminal, or CI keeps it.
func Watched(f *os.File) bool {
	if os.Getenv("CI") != "" {
		return true
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// Step says that something is done or begun.
func (r *Reporter) Step(format string, args ...any) {
	if r.verbose {
		r.write(format, args...)
	}
}

// Say says what matters even in a pipe.
func (r *Reporter) Say(format string, args ...any) { r.write(format, args...) }

// During runs f under a step of its own and, while it goes on, says so from
// time to time.
func (r *Reporter) During(what string, f func() error) error {
	begun := time.Now()
	r.Step("%s", what)
	done := make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		ticker := time.NewTicker(20 * time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				r.Step("  … %s, for %s now", what, time.Since(begun).Round(time.Second))
			}
		}
	})
	err := f()
	close(done)
	ended.Wait()
	if err == nil {
		r.Step("  ✓ %s (%s)", what, time.Since(begun).Round(100*time.Millisecond))
	}
	return err
}

func (r *Reporter) write(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := strings.TrimRight(fmt.Sprintf(format, args...), "\n")
	// A progress line that cannot be written has nobody who misses it.
	_, _ = fmt.Fprintf(r.out, "[%6.1fs] %s\n", time.Since(r.started).Seconds(), text)
}
