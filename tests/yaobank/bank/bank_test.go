package bank

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// chain runs the three services on sockets of their own and records the trace
// headers that reach each.
type chain struct {
	customer, summary, database *httptest.Server

	mu   sync.Mutex
	seen map[string]http.Header
}

func newChain(t *testing.T) *chain {
	t.Helper()
	c := &chain{seen: map[string]http.Header{}}
	start := func(name string, handler http.Handler, err error) *httptest.Server {
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c.mu.Lock()
			c.seen[name] = r.Header.Clone()
			c.mu.Unlock()
			handler.ServeHTTP(w, r)
		}))
		t.Cleanup(server.Close)
		return server
	}
	handler, err := Database()
	c.database = start("database", handler, err)
	handler, err = Summary(c.database.URL, quiet())
	c.summary = start("summary", handler, err)
	handler, err = Customer(c.summary.URL, quiet())
	c.customer = start("customer", handler, err)
	return c
}

func get(t *testing.T, url string, header http.Header) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header = header.Clone()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func TestPages(t *testing.T) {
	c := newChain(t)
	for _, test := range []struct {
		path   string
		status int
		shows  []string
	}{
		{"/", 200, []string{"Robin Ashdown", "519940", "2389.45"}},
		{"/accounts/519941", 200, []string{"Mirela Kovač", "519941", "18200.00"}},
		{"/accounts/1", 404, []string{"We know no account 1"}},
		{"/accounts/1%3Cscript%3E", 400, []string{"not an account number"}},
		{"/nothing", 404, []string{"404"}},
	} {
		status, body := get(t, c.customer.URL+test.path, nil)
		if status != test.status {
			t.Errorf("%s answered %d, want %d", test.path, status, test.status)
		}
		for _, want := range test.shows {
			if !strings.Contains(body, want) {
				t.Errorf("%s does not show %q:\n%s", test.path, want, body)
			}
		}
		if strings.Contains(body, "<script") {
			t.Errorf("%s holds a script", test.path)
		}
	}
}

func TestSummaryJSON(t *testing.T) {
	c := newChain(t)
	status, body := get(t, c.summary.URL+"/accounts/519942", nil)
	var got Account
	if err := json.Unmarshal([]byte(body), &got); err != nil || status != http.StatusOK {
		t.Fatalf("%d %s: %v", status, body, err)
	}
	if diff := cmp.Diff(Account{"519942", "Tomás Oyelaran", "73.10"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestTraceHeadersTravel(t *testing.T) {
	c := newChain(t)
	sent := http.Header{
		"Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		"Tracestate":  {"a=1", "b=2"},
		"Baggage":     {"user=robin"},
		"X-Other":     {"stays"},
	}
	if status, body := get(t, c.customer.URL, sent); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, service := range []string{"summary", "database"} {
		got := http.Header{}
		for name := range sent {
			if values := c.seen[service].Values(name); len(values) > 0 {
				got[name] = values
			}
		}
		want := sent.Clone()
		want.Del("X-Other")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s got (-want +got):\n%s", service, diff)
		}
	}
}

// What a mesh says when it denies must reach whoever looks at the page.
func TestDenialIsShown(t *testing.T) {
	denied := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "denied by policy yaobank/only-customer", http.StatusForbidden)
	}))
	defer denied.Close()
	handler, err := Summary(denied.URL, quiet())
	if err != nil {
		t.Fatal(err)
	}
	summary := httptest.NewServer(handler)
	defer summary.Close()
	handler, err = Customer(summary.URL, quiet())
	if err != nil {
		t.Fatal(err)
	}
	customer := httptest.NewServer(handler)
	defer customer.Close()
	status, body := get(t, customer.URL, nil)
	if status != http.StatusBadGateway || !strings.Contains(body, "403 Forbidden") || !strings.Contains(body, "yaobank/only-customer") {
		t.Errorf("%d:\n%s", status, body)
	}
}

func TestBadAnswersFromBelow(t *testing.T) {
	for name, body := range map[string]string{
		"not JSON":    "<html>",
		"null":        "null",
		"no node":     `{"action":"get"}`,
		"null child":  `{"action":"get","node":{"nodes":[null]}}`,
		"a file":      `{"action":"get","node":{"key":"/accounts/519940","value":"x"}}`,
		"no balance":  `{"action":"get","node":{"nodes":[{"key":"/accounts/519940/name","value":"R"}]}}`,
		"empty value": `{"action":"get","node":{"nodes":[{"key":"/a/name","value":""},{"key":"/a/balance","value":"1"}]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			below := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }))
			defer below.Close()
			handler, err := Summary(below.URL, quiet())
			if err != nil {
				t.Fatal(err)
			}
			summary := httptest.NewServer(handler)
			defer summary.Close()
			if status, answer := get(t, summary.URL+"/accounts/519940", nil); status != http.StatusBadGateway {
				t.Errorf("%d %s, want 502", status, answer)
			}
		})
	}
}

func TestUpstreamURLIsChecked(t *testing.T) {
	for _, url := range []string{"", "summary", "tcp://summary", "http://", "http://a b", "://"} {
		if _, err := Customer(url, quiet()); err == nil {
			t.Errorf("Customer(%q) was accepted", url)
		}
	}
}

// A request that is being answered when the service is told to stop is
// answered in full, and its log line is one JSON document with the trace.
func TestServeDrains(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	entered := make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-ctx.Done()
		time.Sleep(20 * time.Millisecond) // the work that is left when the signal comes
		io.WriteString(w, "whole")
	})
	var log bytes.Buffer
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, listener, "test", handler, slog.New(slog.NewJSONHandler(&log, nil))) }()
	go func() { <-entered; stop() }()
	status, body := get(t, "http://"+listener.Addr().String()+"/x?y=1", http.Header{"Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}})
	if status != http.StatusOK || body != "whole" {
		t.Errorf("got %d %q", status, body)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	for line := range strings.Lines(log.String()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		if entry["msg"] != "request" {
			continue
		}
		if entry["service"] != "test" || entry["path"] != "/x?y=1" || entry["status"] != 200.0 || entry["trace_id"] != "0af7651916cd43dd8448eb211c80319c" {
			t.Errorf("log line %s", line)
		}
		return
	}
	t.Errorf("no request line in:\n%s", log.String())
}
