package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// signalFiles are the files that manifests/ tells the file exporters to write:
// one OTLP JSON document a line and export.
var signalFiles = map[string]string{
	"traces":  "traces.jsonl",
	"metrics": "metrics.jsonl",
}

func signalPath(dir, signal string) (string, error) {
	name, ok := signalFiles[signal]
	if !ok {
		return "", usageError(fmt.Sprintf("unknown signal %q: it is traces or metrics", signal))
	}
	return filepath.Join(dir, name), nil
}

// cat copies what the Collector has written of one signal. A file that is not
// there yet means that nothing has arrived, which is an answer and no error.
func cat(w io.Writer, dir, signal string) error {
	path, err := signalPath(dir, signal)
	if err != nil {
		return err
	}
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", signal, err)
	}
	defer file.Close()
	if _, err := io.Copy(w, file); err != nil {
		return fmt.Errorf("copy %s: %w", signal, err)
	}
	return nil
}

// readback serves the exporters' files and the pod's health.
type readback struct {
	dir     string
	running func() bool
}

func (r readback) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if !r.running() {
			http.Error(w, "the collector's pipelines are not running", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	for signal := range signalFiles {
		mux.HandleFunc("GET /"+signal, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/x-ndjson")
			if err := cat(w, r.dir, signal); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
	}
	return mux
}

func serve(ctx context.Context, addr string, r readback, grace time.Duration) error {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for read-back on %s: %w", addr, err)
	}
	server := &http.Server{Handler: r.handler(), ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 1) // one result, so Serve's goroutine always ends
	go func() { done <- server.Serve(listener) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve read-back on %s: %w", addr, err)
	case <-ctx.Done():
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := server.Shutdown(stopping); err != nil {
		return fmt.Errorf("stop read-back server: %w", err)
	}
	return nil
}
