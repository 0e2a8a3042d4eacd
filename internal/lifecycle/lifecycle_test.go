package lifecycle

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRun(t *testing.T) {
	boom := errors.New("boom")
	untilDone := func(ctx context.Context) error { <-ctx.Done(); return nil }
	tests := []struct {
		name    string
		tasks   []Task
		cancel  bool
		wantErr string
	}{
		{"the end of the context is no error", []Task{{"a", untilDone}, {"b", untilDone}}, true, ""},
		{"an error ends all and names its task", []Task{{"a", untilDone}, {"b", func(context.Context) error { return boom }}}, false, "b: boom"},
		{"a task that ends by itself is an error", []Task{{"a", untilDone}, {"b", func(context.Context) error { return nil }}}, false, "b: ended by itself"},
		{"an error while stopping is told", []Task{{"a", func(ctx context.Context) error { <-ctx.Done(); return boom }}}, true, "a: while stopping: boom"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tt.cancel {
				cancel()
			}
			err := Run(ctx, tt.tasks...)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tt.wantErr {
				t.Errorf("Run() = %q, want %q", got, tt.wantErr)
			}
		})
	}
}

func TestHealth(t *testing.T) {
	h := NewHealth()
	mux := http.NewServeMux()
	h.Handle(mux)
	ready := func() (int, string) {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
		return w.Code, strings.TrimSpace(w.Body.String())
	}
	if code, _ := ready(); code != http.StatusServiceUnavailable {
		t.Errorf("without checks: got %d, want 503: the zero Health is not ready", code)
	}
	a, b := h.Register("identity"), h.Register("config")
	a.Ready()
	b.NotReady("control plane unreachable")
	if code, body := ready(); code != http.StatusServiceUnavailable || body != "config: control plane unreachable" {
		t.Errorf("got %d %q, want 503 and the check's reason", code, body)
	}
	b.Ready()
	if code, body := ready(); code != http.StatusOK || body != "ok" {
		t.Errorf("got %d %q, want 200 ok", code, body)
	}
}

func TestServeStopsWithContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- ServeListener(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "hello")
		}))
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(body) != "hello" {
		t.Errorf("got %q, want hello", body)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ServeListener() = %v, want nil after the context ended", err)
	}
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("the listener is still open")
	}
}
