package run

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// apiServer forwards ports as a kubelet does, over SPDY: an older server, which
// refuses WebSockets. answer gets each pair of streams.
func apiServer(t *testing.T, answer func(port string, data, errs httpstream.Stream)) *Clients {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/namespaces/shop/pods/web/portforward" {
			http.NotFound(w, r)
			return
		}
		if r.Method != http.MethodPost {
			http.Error(w, "no WebSockets here", http.StatusBadRequest)
			return
		}
		if _, err := httpstream.Handshake(r, w, []string{"portforward.k8s.io"}); err != nil {
			t.Error(err)
			return
		}
		streams := make(chan httpstream.Stream, 2)
		conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, _ <-chan struct{}) error {
			streams <- s
			return nil
		})
		if conn == nil {
			return
		}
		defer conn.Close()
		pair := map[string]httpstream.Stream{}
		for len(pair) < 2 {
			s := <-streams
			pair[s.Headers().Get(corev1.StreamType)] = s
		}
		data, errs := pair[corev1.StreamTypeData], pair[corev1.StreamTypeError]
		answer(data.Headers().Get(corev1.PortHeader), data, errs)
		<-conn.CloseChan()
	}))
	t.Cleanup(s.Close)
	cfg := &rest.Config{Host: s.URL}
	kube, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &Clients{Config: cfg, Kube: kube}
}

func TestPodHTTP(t *testing.T) {
	c := apiServer(t, func(port string, data, errs httpstream.Stream) {
		errs.Close()
		defer data.Close()
		r, err := http.ReadRequest(bufio.NewReader(data))
		if err != nil {
			t.Error(err)
			return
		}
		body := fmt.Sprintf(`{"path":%q,"port":%q}`, r.URL.Path, port)
		status := "200 OK"
		if r.URL.Path == "/missing" {
			status, body = "404 Not Found", "no such page"
		}
		fmt.Fprintf(data, "HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
	})
	var got struct{ Path, Port string }
	if err := c.PodJSON(t.Context(), "shop", "web", 15000, "/status", &got); err != nil {
		t.Fatal(err)
	}
	if got.Path != "/status" || got.Port != "15000" {
		t.Errorf("the pod was asked for %+v", got)
	}
	if err := c.PodJSON(t.Context(), "shop", "web", 15000, "/missing", &got); err == nil || !strings.Contains(err.Error(), "404 Not Found: no such page") {
		t.Errorf("error %v, want the pod's answer", err)
	}
	if _, err := c.PodDo(t.Context(), http.MethodGet, "shop", "nobody", 15000, "/status", nil); err == nil || Code(err) != ExitRuntime {
		t.Errorf("error %v, want one of code %d", err, ExitRuntime)
	}
}

// TestPodRefuses wants the kubelet's own words.
func TestPodRefuses(t *testing.T) {
	c := apiServer(t, func(_ string, data, errs httpstream.Stream) {
		fmt.Fprint(errs, "dial tcp4 127.0.0.1:15000: connect: connection refused")
		errs.Close()
		data.Close()
	})
	_, err := c.PodDo(t.Context(), http.MethodGet, "shop", "web", 15000, "/status", nil)
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("error %v, want the kubelet's", err)
	}
}

// TestPodHangs wants the end of the context to end the request.
func TestPodHangs(t *testing.T) {
	c := apiServer(t, func(_ string, data, errs httpstream.Stream) {
		_, _ = io.Copy(io.Discard, data)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := c.PodDo(ctx, http.MethodGet, "shop", "web", 15000, "/status", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want that of the context", err)
	}
}

func TestEach(t *testing.T) {
	items := make([]int, 100)
	for i := range items {
		items[i] = i
	}
	var now, most atomic.Int64
	got := Each(items, func(i int) int {
		n := now.Add(1)
		for {
			m := most.Load()
			if n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		defer now.Add(-1)
		return i * 2
	})
	for i, v := range got {
		if v != 2*i {
			t.Fatalf("result %d is %d, want %d", i, v, 2*i)
		}
	}
	if most.Load() > AtOnce {
		t.Errorf("%d at once, want at most %d", most.Load(), AtOnce)
	}
}

func TestWords(t *testing.T) {
	for d, want := range map[time.Duration]string{-1: "0s", 5 * time.Second: "5s", 90 * time.Second: "1m30s", 90 * time.Minute: "1h30m", 72 * time.Hour: "3 days"} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%v) = %q, want %q", d, got, want)
		}
	}
	if got := Some([]string{"f", "e", "d", "c", "b", "a"}); got != "a, b, c, d, e and 1 more" {
		t.Errorf("Some = %q", got)
	}
}
