package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// clusterConfig is the configuration that manifests/ gives to the Collector,
// with its ports and its folder replaced, so that what is tested is what runs.
func clusterConfig(t *testing.T, dir, grpcAddr, httpAddr string) string {
	t.Helper()
	file, err := os.Open("manifests/collector.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for documents := yaml.NewDecoder(file); ; {
		var object struct {
			Kind string
			Data map[string]string
		}
		if err := documents.Decode(&object); err != nil {
			t.Fatalf("no ConfigMap in the manifests: %v", err)
		}
		if object.Kind != "ConfigMap" {
			continue
		}
		text := object.Data["config.yaml"]
		for _, change := range [][2]string{{`"[::]:4317"`, grpcAddr}, {`"[::]:4318"`, httpAddr}, {"/data/", dir + "/"}} {
			if !strings.Contains(text, change[0]) {
				t.Fatalf("the configuration lacks %s", change[0])
			}
			text = strings.ReplaceAll(text, change[0], change[1])
		}
		path := filepath.Join(dir, "config.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
}

// freeAddresses are loopback addresses that nothing listened on a moment ago.
func freeAddresses(t *testing.T, n int) []string {
	t.Helper()
	var addresses []string
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		addresses = append(addresses, listener.Addr().String())
	}
	return addresses
}

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, string(body)
}

// eventually polls until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 20 s: %s", what)
		}
	}
}

func TestSpanIsReadBack(t *testing.T) {
	dir := t.TempDir()
	addresses := freeAddresses(t, 3)
	config := clusterConfig(t, dir, addresses[0], addresses[1])
	readURL := "http://" + addresses[2]
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() {
		done <- dispatch(ctx, []string{"run", "-config", config, "-data", dir, "-http", addresses[2]}, io.Discard, io.Discard)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	eventually(t, "the collector is not healthy", func() bool {
		status, _ := fetch(t, readURL+"/healthz")
		return status == http.StatusOK
	})

	conn, err := grpc.NewClient(addresses[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	traces := ptrace.NewTraces()
	resource := traces.ResourceSpans().AppendEmpty()
	resource.Resource().Attributes().PutStr("service.name", "summary")
	span := resource.ScopeSpans().AppendEmpty().Spans().AppendEmpty()
	span.SetName("GET /v2/keys/accounts/{number}")
	span.SetTraceID(pcommon.TraceID{0xab, 0xcd, 15: 1})
	span.SetSpanID(pcommon.SpanID{7: 1})
	if _, err := ptraceotlp.NewGRPCClient(conn).Export(t.Context(), ptraceotlp.NewExportRequestFromTraces(traces)); err != nil {
		t.Fatal(err)
	}

	var body string
	eventually(t, "the span was not written", func() bool {
		_, body = fetch(t, readURL+"/traces")
		return strings.Contains(body, "\n")
	})
	var got struct {
		ResourceSpans []struct {
			ScopeSpans []struct {
				Spans []struct{ TraceID, Name string }
			}
		}
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatalf("not one OTLP JSON document: %v\n%s", err, body)
	}
	read := got.ResourceSpans[0].ScopeSpans[0].Spans[0]
	if read.TraceID != "abcd0000000000000000000000000001" || read.Name != span.Name() {
		t.Errorf("read back %+v", read)
	}
	var out bytes.Buffer
	if err := dispatch(t.Context(), []string{"cat", "-data", dir, "traces"}, &out, io.Discard); err != nil || out.String() != body {
		t.Errorf("cat: %v, %q, want %q", err, &out, body)
	}
	if status, body := fetch(t, readURL+"/metrics"); status != http.StatusOK || body != "" {
		t.Errorf("metrics before any arrived: %d %q", status, body)
	}
}

func TestWrongUse(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		args []string
		says string
	}{
		{nil, "sub-command"},
		{[]string{"walk"}, `unknown sub-command "walk"`},
		{[]string{"cat"}, "traces, metrics"},
		{[]string{"cat", "logs"}, `unknown signal "logs"`},
		{[]string{"run", "-config", filepath.Join(dir, "none.yaml"), "-http", "127.0.0.1:0"}, "none.yaml"},
		{[]string{"run", "-config", "/dev/null", "-http", "127.0.0.1:0"}, "empty configuration"},
	} {
		err := dispatch(t.Context(), test.args, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%q: %v, want %q", test.args, err, test.says)
		}
	}
}
