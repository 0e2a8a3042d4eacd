package probe

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// application counts what it is asked and answers when it is let.
type application struct {
	asked   atomic.Int64
	paths   sync.Map
	release chan struct{} // nil to answer at once
}

func (a *application) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.asked.Add(1)
	a.paths.Store(r.Method+" "+r.Host+r.URL.RequestURI(), true)
	if a.release != nil {
		<-a.release
	}
	if r.URL.Path == "/away" {
		http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
	}
}

// setUp is a handler with a probe "app/readiness" of the application, and the
// addresses that it dials.
func setUp(t *testing.T, a *application, path string) (h *Handler, dialled func() []string) {
	t.Helper()
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	to := netip.MustParseAddrPort(server.Listener.Addr().String())
	var mu sync.Mutex
	var all []string
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		mu.Lock()
		all = append(all, address)
		mu.Unlock()
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}
	h = New(Probes{"app/readiness": {HTTP: &HTTP{Path: path, Port: to.Port()}, TimeoutSeconds: 20}}, to.Addr(), dial)
	return h, func() []string { mu.Lock(); defer mu.Unlock(); return append([]string(nil), all...) }
}

// TestOnlyDeclaredProbes: nothing of a request but the probe's name has an
// influence on what is asked of whom.
func TestOnlyDeclaredProbes(t *testing.T) {
	for _, tc := range []struct {
		method, target string
		header         map[string]string
		status         int
		asked          bool
	}{
		{"GET", "/probe/app/readiness", nil, 200, true},
		{"HEAD", "/probe/app/readiness", nil, 200, true},
		{"GET", "/probe/app/readiness?path=/admin&port=22", nil, 200, true},
		{"GET", "http://192.0.2.1/probe/app/readiness", map[string]string{"X-Forwarded-Host": "192.0.2.1"}, 200, true},
		{"POST", "/probe/app/readiness", nil, 405, false},
		{"GET", "/probe/app/liveness", nil, 404, false},
		{"GET", "/probe/app/readiness/", nil, 404, false},
		{"GET", "/probe/app/readiness/../../x", nil, 404, false},
		{"GET", "/probe/", nil, 404, false},
		{"GET", "/probe//http://192.0.2.1/", nil, 404, false},
		{"GET", "/probe/app%2freadiness", nil, 200, true},
	} {
		t.Run(tc.method+" "+tc.target, func(t *testing.T) {
			a := &application{}
			h, dialled := setUp(t, a, "/health?deep=1")
			r := httptest.NewRequestWithContext(t.Context(), tc.method, tc.target, strings.NewReader("body"))
			for k, v := range tc.header {
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != tc.status {
				t.Errorf("status %d, want %d: %s", w.Code, tc.status, w.Body)
			}
			var want []string
			own := netip.AddrPortFrom(h.pod, h.probes["app/readiness"].HTTP.Port).String()
			if tc.asked {
				want = []string{own}
				if _, ok := a.paths.Load("GET " + own + "/health?deep=1"); !ok {
					t.Error("the application was not asked as the probe was declared")
				}
			}
			if d := cmp.Diff(want, dialled()); d != "" {
				t.Errorf("dialled (-want +got):\n%s", d)
			}
		})
	}
}

// TestRedirectIsNotFollowed: an application cannot send the sidecar elsewhere.
func TestRedirectIsNotFollowed(t *testing.T) {
	h, dialled := setUp(t, &application{}, "/away")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/probe/app/readiness", nil))
	if w.Code != 200 || len(dialled()) != 1 {
		t.Errorf("status %d, dialled %v", w.Code, dialled())
	}
}

// TestManyAskers share one run, even when who began it leaves.
func TestManyAskers(t *testing.T) {
	a := &application{release: make(chan struct{})}
	h, _ := setUp(t, a, "/")
	h.fresh = time.Hour
	first, leave := context.WithCancel(t.Context())
	codes := make(chan string, 100)
	var wg sync.WaitGroup
	ask := func(ctx context.Context) {
		wg.Go(func() {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/probe/app/readiness", nil))
			codes <- fmt.Sprint(w.Code)
		})
	}
	ask(first)
	for a.asked.Load() == 0 {
		if t.Context().Err() != nil {
			t.Fatal("never asked")
		}
	}
	leave()
	for range 50 {
		ask(t.Context())
	}
	close(a.release)
	wg.Wait()
	close(codes)
	for c := range codes {
		if c != "200" {
			t.Errorf("status %s", c)
		}
	}
	if n := a.asked.Load(); n != 1 {
		t.Errorf("the application was asked %d times", n)
	}
	h.fresh = 0
	again := httptest.NewRecorder()
	h.ServeHTTP(again, httptest.NewRequestWithContext(t.Context(), "GET", "/probe/app/readiness", nil))
	if n := a.asked.Load(); again.Code != 200 || n != 2 {
		t.Errorf("an old outcome: status %d, asked %d times", again.Code, n)
	}
}
