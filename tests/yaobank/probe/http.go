package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sort"
	"strings"
	"sync/atomic"
	"time"
)

// HTTPRequest is one attempt, or Count of them Interval apart.
type HTTPRequest struct {
	Method, URL string
	Headers     []string // NAME=VALUE or NAME: VALUE
	Body        string
	Timeout     time.Duration
	Count       int
	Interval    time.Duration
	Reuse       bool // keep connections between attempts
	JSON        bool // one JSON document an attempt
	AllHeaders  bool
}

// httpResult is what --json prints; Code is the exit code that the attempt
// would have alone.
type httpResult struct {
	Code     int         `json:"code"`
	Status   int         `json:"status,omitempty"`
	Proto    string      `json:"proto,omitempty"`
	Headers  http.Header `json:"headers,omitempty"`
	Body     string      `json:"body,omitempty"`
	Error    string      `json:"error,omitempty"`
	Remote   string      `json:"remote,omitempty"`
	Duration float64     `json:"duration_seconds"`
}

// shown are the headers printed without --all-headers.
var shown = []string{"Content-Type", "Location", "Server", "Via", "X-Etcd-Index", "Traceparent", "Retry-After", "Www-Authenticate"}

// HTTP makes the attempts and prints each. With several, the error is that of
// the last that failed and a summary line closes the output.
func HTTP(ctx context.Context, out io.Writer, want HTTPRequest) error {
	header, host, err := parseHeaders(want.Headers)
	if err != nil {
		return &Failure{Usage, err}
	}
	transport := &http.Transport{DisableKeepAlives: !want.Reuse, DisableCompression: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport:     transport,
		Timeout:       want.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var failure error
	succeeded, failed := 0, 0
	for i := 0; i < max(1, want.Count); i++ {
		if i > 0 && !pause(ctx, want.Interval) {
			break
		}
		request, err := http.NewRequestWithContext(ctx, want.Method, want.URL, strings.NewReader(want.Body))
		if err != nil {
			return &Failure{Usage, err}
		}
		request.Header = header.Clone()
		request.Host = host
		result, err := attempt(client, request)
		if err != nil {
			failure, failed = err, failed+1
		} else {
			succeeded++
		}
		if err := result.print(out, want.JSON, want.AllHeaders); err != nil {
			return fmt.Errorf("print answer: %w", err)
		}
	}
	if want.Count > 1 && !want.JSON {
		fmt.Fprintf(out, "summary ok=%d failed=%d\n", succeeded, failed)
	}
	return failure
}

func attempt(client *http.Client, request *http.Request) (httpResult, error) {
	// The transport's goroutine writes this one, also after a timeout.
	var connected atomic.Pointer[string]
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		remote := info.Conn.RemoteAddr().String()
		connected.Store(&remote)
	}}
	request = request.WithContext(httptrace.WithClientTrace(request.Context(), trace))
	start := time.Now()
	result, err := func() (httpResult, error) {
		response, err := client.Do(request)
		if err != nil {
			return httpResult{}, classify(err, connected.Load() != nil)
		}
		defer response.Body.Close()
		result := httpResult{Status: response.StatusCode, Proto: response.Proto, Headers: response.Header}
		body, err := io.ReadAll(io.LimitReader(response.Body, maxShown))
		result.Body = string(body)
		if err != nil {
			return result, classify(err, true)
		}
		if response.StatusCode >= 400 {
			return result, &Failure{BadStatus, fmt.Errorf("%s: the answer is %s", word(BadStatus), response.Status)}
		}
		return result, nil
	}()
	result.Duration = time.Since(start).Seconds()
	if remote := connected.Load(); remote != nil {
		result.Remote = *remote
	}
	if err != nil {
		result.Error = err.Error()
		var failure *Failure
		if errors.As(err, &failure) {
			result.Code = failure.Code
		}
	}
	return result, err
}

func (r httpResult) print(out io.Writer, asJSON, allHeaders bool) error {
	if asJSON {
		return json.NewEncoder(out).Encode(r)
	}
	var text bytes.Buffer
	if r.Status != 0 {
		fmt.Fprintf(&text, "%s %d %s\n", r.Proto, r.Status, http.StatusText(r.Status))
		names := shown
		if allHeaders {
			names = make([]string, 0, len(r.Headers))
			for name := range r.Headers {
				names = append(names, name)
			}
			sort.Strings(names)
		}
		for _, name := range names {
			for _, value := range r.Headers.Values(name) {
				fmt.Fprintf(&text, "%s: %s\n", name, value)
			}
		}
		text.WriteString("\n" + r.Body)
		if r.Body != "" && !strings.HasSuffix(r.Body, "\n") {
			text.WriteByte('\n')
		}
	} else {
		fmt.Fprintln(&text, r.Error)
	}
	_, err := text.WriteTo(out)
	return err
}

// parseHeaders reads curl's and our own way to write a header; Host is apart
// because net/http takes it from the request and not from its headers.
func parseHeaders(lines []string) (header http.Header, host string, err error) {
	header = http.Header{}
	for _, line := range lines {
		i := strings.IndexAny(line, ":=")
		if i <= 0 {
			return nil, "", fmt.Errorf("header %q wants the form NAME=VALUE or 'NAME: VALUE'", line)
		}
		name, value := strings.TrimSpace(line[:i]), strings.TrimSpace(line[i+1:])
		if strings.EqualFold(name, "Host") {
			host = value
			continue
		}
		header.Add(name, value)
	}
	return header, host, nil
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// ServeHTTP answers every request on the listener with a JSON description of it.
func ServeHTTP(ctx context.Context, listener net.Listener) error {
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{
			"method": r.Method, "path": r.URL.Path, "query": r.URL.RawQuery, "host": r.Host, "proto": r.Proto,
			"remote": r.RemoteAddr, "headers": r.Header, "body": string(body),
		})
	})}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve http on %s: %w", listener.Addr(), err)
	}
	return nil
}
