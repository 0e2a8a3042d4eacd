// Package bank is the yaobank: the customer's web page, the account summary
// behind it and the database behind that, each a small HTTP server.
//
// It owns the pages, the JSON and how the three find each other. It knows no
// telemetry SDK: a request's trace headers are handed on as they came, which is
// all that a mesh asks of an application.
package bank

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

const (
	drainTime = 5 * time.Second
	// upstreamTimeout is shorter than a person's patience and longer than a
	// restart of the next service.
	upstreamTimeout = 3 * time.Second
)

// Serve answers on the listener until ctx ends, then lets requests in flight
// finish. It owns the listener.
func Serve(ctx context.Context, listener net.Listener, service string, handler http.Handler, log *slog.Logger) error {
	log = log.With("service", service)
	server := &http.Server{
		Handler:           logged(handler, log),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1) // one result, so that Serve's goroutine always ends
	go func() { done <- server.Serve(listener) }()
	log.Info("listening", "address", listener.Addr().String())
	select {
	case err := <-done:
		return fmt.Errorf("serve %s on %s: %w", service, listener.Addr(), err)
	case <-ctx.Done():
	}
	log.Info("draining")
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	if err := server.Shutdown(stopping); err != nil {
		server.Close()
		return fmt.Errorf("drain %s within %s: %w", service, drainTime, err)
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("stop %s: %w", service, err)
	}
	log.Info("stopped")
	return nil
}

// logged writes one line a request; the probes' requests only at debug level.
func logged(next http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		recorder := &recorder{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(recorder, r)
		level := slog.LevelInfo
		if r.URL.Path == "/healthz" || r.URL.Path == "/health" {
			level = slog.LevelDebug
		}
		log.LogAttrs(r.Context(), level, "request",
			slog.String("method", r.Method),
			slog.String("path", r.URL.RequestURI()),
			slog.Int("status", recorder.status),
			slog.Int64("bytes", recorder.bytes),
			slog.Float64("duration_seconds", time.Since(start).Seconds()),
			slog.String("remote", r.RemoteAddr),
			slog.String("trace_id", traceID(r.Header.Get("traceparent"))),
		)
	})
}

type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}

func healthz(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }
