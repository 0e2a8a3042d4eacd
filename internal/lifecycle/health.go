package lifecycle

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Health is what a process says of itself: it is ready when every check is.
// The zero Health has no checks and is not ready.
type Health struct {
	mu     sync.Mutex
	checks []*Check
}

// NewHealth is a Health without checks.
func NewHealth() *Health { return &Health{} }

// Check is one condition of readiness. It starts not ready.
type Check struct {
	name string

	mu     sync.Mutex
	ready  bool
	reason string
}

// Register adds a check, not ready until it says so.
func (h *Health) Register(name string) *Check {
	c := &Check{name: name, reason: "starting"}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checks = append(h.checks, c)
	return c
}

// Ready marks the check as met.
func (c *Check) Ready() { c.set(true, "") }

// NotReady marks the check as not met, and why.
func (c *Check) NotReady(reason string) { c.set(false, reason) }

func (c *Check) set(ready bool, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ready, c.reason = ready, reason
}

// NotReady lists the checks that are not met, "name: reason" each, sorted. An
// empty list from a Health that has checks means ready.
func (h *Health) NotReady() []string {
	h.mu.Lock()
	checks := slices.Clone(h.checks)
	h.mu.Unlock()
	if len(checks) == 0 {
		return []string{"no checks registered"}
	}
	var out []string
	for _, c := range checks {
		c.mu.Lock()
		if !c.ready {
			out = append(out, fmt.Sprintf("%s: %s", c.name, c.reason))
		}
		c.mu.Unlock()
	}
	slices.Sort(out)
	return out
}

// Handle puts /healthz, which answers while the process runs, and /readyz,
// which lists what is not ready, on mux.
func (h *Health) Handle(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if missing := h.NotReady(); len(missing) > 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, strings.Join(missing, "\n"))
			return
		}
		fmt.Fprintln(w, "ok")
	})
}
